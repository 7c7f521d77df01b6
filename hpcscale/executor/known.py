"""What the folder and the ledger know of a job: where it is, and where its files are there."""

from pathlib import Path

from submitit.core import utils

from hpcscale.errors import NotFoundError, UsageError
from hpcscale.executor.pickles import OWN
from hpcscale.executor.watch import own_ledger
from hpcscale.ledger import Attempt
from hpcscale.units import JobId


def site_file(folder: Path) -> Path:
    """The file that names the site which owns submitit's folder."""
    return utils.JobPaths.get_first_id_independent_folder(folder) / OWN / "site"


def site_of(folder: Path) -> str:
    """The site whose jobs are in this folder; empty when nobody knows."""
    for path in (site_file(folder), site_file(folder.parent)):
        try:
            name = path.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return name if path == site_file(folder) else folder.name
    return ""


def attempt_of(site: str, job_id: str) -> Attempt | None:
    """The ledger's newest attempt of that id; None when it was not submitted by this user."""
    try:
        return own_ledger().find(f"{site}:{JobId.parse(job_id).base}")
    except (NotFoundError, UsageError, ValueError):
        return None


def there_of(attempt: Attempt) -> str:
    """Where submitit's files of an attempt are on its site; empty for a rendered script."""
    if "outputs/submitit" in attempt.staged:
        return f"{attempt.run_dir}/outputs/submitit"
    return own_ledger().run(attempt.run_id).spec.outputs.get("submitit", "").rstrip("/")
