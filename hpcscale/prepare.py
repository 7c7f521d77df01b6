"""From a spec to what is sent: the code is read, its hashes go into the script, it is packed.

``render`` is pure and knows nothing of files. ``prepare`` reads the code's directory first, so that
the script's header says which program it starts; the same files give the same bytes.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from hpcscale.code.store import Packed, pack
from hpcscale.code.tree import CodeTree, read_identity, read_tree, show_bytes
from hpcscale.errors import HpcscaleError, InvalidFileError
from hpcscale.ledger import Attempt, Ledger
from hpcscale.render import Gate, RenderedJob, render
from hpcscale.render.places import container_code
from hpcscale.settings import state_dir
from hpcscale.site import Site
from hpcscale.spec import BurstMode, CodeId, JobSpec, SecretSource
from hpcscale.staging import CODE

EVENT = "run.code"


def prepare(
    spec: JobSpec,
    site: Site,
    *,
    gate: Gate | None = None,
    code: CodeId | None = None,
    sending: bool = True,
) -> RenderedJob:
    """Render a job whose header names its code. Nothing is written or sent.

    Args:
        spec: what to run.
        site: where.
        gate: see ``render``.
        code: of an earlier attempt of the run: this one starts the same program, whatever was
            changed since. Used when its archive is still here.
        sending: False: for looking at the script alone; code that could not go along is a notice.

    Raises:
        HpcscaleError: what ``render`` and ``read_tree`` raise.
    """
    rendered = render(spec, site, gate=gate)
    try:
        found, notices = _identity(rendered, code)
    except HpcscaleError as exc:
        if sending:
            raise
        found, notices = None, [f"submit would refuse it: {exc}"]
    if found is not None:
        rendered = render(spec, site, gate=gate, code=found)
    return replace(rendered, notices=(*rendered.notices, *notices))


def _identity(rendered: RenderedJob, code: CodeId | None) -> tuple[CodeId | None, list[str]]:
    spec = rendered.spec
    root = rendered.staged.get(CODE)
    if root is None:
        if container_code(spec) is not None:
            return CodeId(kind="container"), []
        if not rendered.home:
            return None, []
        return _in_place(spec)
    if code is not None and code.tree_sha256 and _archive(code.tree_sha256).is_file():
        return code, []
    tree = read_tree(Path(root), named=spec.code is not None, never=_stays_here(spec.secrets))
    return tree.id, _notices(tree, named=spec.code is not None)


def _in_place(spec: JobSpec) -> tuple[CodeId | None, list[str]]:
    """Code that the nodes see: what git tells of it, and whether it could go elsewhere."""
    root = Path(spec.code or spec.workdir or "")
    notices = []
    if spec.burst.mode is not BurstMode.NEVER:
        try:
            read_tree(root, named=spec.code is not None, never=secret_files(spec.secrets))
        except HpcscaleError as exc:
            if spec.burst.mode is BurstMode.ONLY:
                raise
            notices.append(
                f"the job cannot leave its site, as its code could not go along: {exc}"
                + (f" ({exc.hint})" if exc.hint else "")
            )
    try:
        return read_identity(root), notices
    except HpcscaleError as exc:  # it is used in place: what git cannot tell stands in no way
        return None, [*notices, f"the script does not name its code: {exc}"]


def _notices(tree: CodeTree, *, named: bool) -> list[str]:
    found = []
    if not named:
        found.append(
            f"{tree.root} goes along as the code: {tree.files} files, {show_bytes(tree.size)} "
            "(--code DIR names another directory, --no-code none)"
        )
    if tree.changed:
        what = f"git commit {(tree.id.commit or 'none')[:12]}"
        found.append(f"the code is {what} and {len(tree.changed)} changed or new files")
    if tree.private:
        found.append(
            f"{', '.join(tree.private[:5])}: stays here, as it looks like a key "
            f"(a line !NAME in .hpcscaleignore sends it)"
        )
    return found


def secret_files(sources: Mapping[str, SecretSource]) -> frozenset[Path]:
    """Files that secrets are read from: they go nowhere, even where the code's directory does."""
    return frozenset(
        Path(s.name).expanduser().resolve() for s in sources.values() if s.kind == "file"
    )


def _stays_here(sources: Mapping[str, SecretSource]) -> frozenset[Path]:
    """What is no code wherever it lies: secrets, and our own ledger, which changes all the time."""
    return secret_files(sources) | {state_dir().resolve()}


def _archive(sha256: str) -> Path:
    return state_dir() / "code" / f"{sha256}.tar.gz"


def pack_code(rendered: RenderedJob) -> Packed | None:
    """The archive of what goes along as code; None when nothing does.

    Raises:
        InvalidFileError: the files are not those that the script's header names.
        HpcscaleError: what ``read_tree`` and ``pack`` raise.
    """
    root = rendered.staged.get(CODE)
    if root is None:
        return None
    known = rendered.code.tree_sha256 if rendered.code else None
    if known and (ready := _archive(known)).is_file():
        return Packed(known, lambda: ready)
    spec = rendered.spec
    tree = read_tree(Path(root), named=spec.code is not None, never=_stays_here(spec.secrets))
    assert tree.id.tree_sha256 is not None
    if known and tree.id.tree_sha256 != known:
        raise InvalidFileError(
            "the code was changed while the job was made; nothing was submitted",
            where=root,
            hint="submit again",
        )
    archive = pack(tree, state_dir() / "code")
    return Packed(tree.id.tree_sha256, lambda: archive)


def note_code(
    ledger: Ledger, attempt: Attempt, rendered: RenderedJob, packed: Packed | None
) -> None:
    """Write into the ledger which program an attempt starts."""
    code = rendered.code
    if code is None and packed is not None:
        code = CodeId(kind="folder", tree_sha256=packed.sha256)
    if code is not None:
        data = {k: v for k, v in msgspec.to_builtins(code).items() if v is not None}
        ledger.event(attempt.run_id, EVENT, data, submission_id=attempt.submission_id)


def code_of(ledger: Ledger, run_id: str) -> CodeId | None:
    """Which program the run's latest attempt starts; None when nobody wrote it down."""
    for event in reversed(ledger.events(run_id)):
        if event.kind == EVENT:
            return msgspec.convert(event.data, CodeId)
    return None
