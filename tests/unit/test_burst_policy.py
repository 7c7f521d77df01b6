import pytest

from hpcscale.burst.policy_file import load_policy
from hpcscale.errors import InvalidFileError, NotFoundError


def write(tmp_path, text):
    path = tmp_path / "P.toml"
    path.write_text(text)
    return path


def test_a_full_policy_reads_back_in_seconds(tmp_path):
    policy = load_policy(
        write(
            tmp_path,
            """
            from = "lab-onprem"
            to = ["lab-cloud", "aws-p5"]
            max_wait = "30m"
            deadline_margin = "5m"
            use_start_estimate = false
            max_moves_per_run = 3
            retry_after = "1h"
            [target.lab-cloud]
            boot = "90s"
            boot_timeout = "00:20:00"
            """,
        )
    )
    assert policy.from_site == "lab-onprem"
    assert policy.to == ("lab-cloud", "aws-p5")
    assert (policy.max_wait_s, policy.deadline_margin_s, policy.retry_after_s) == (1800, 300, 3600)
    assert policy.target["lab-cloud"].boot_s == 90
    assert policy.target["lab-cloud"].boot_timeout_s == 1200
    assert policy.target["lab-cloud"].staging_s is None
    assert not policy.use_start_estimate


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ('from = "a"\nto = ["b"]\nmax_wiat = "1h"', "P.toml:3", "max_wait"),
        ('from = "a"\nto = ["a"]', "P.toml:2", "both the origin and a target"),
        ('from = "a"\nto = []', "P.toml:2", "no target"),
        ('from = "a"\nto = ["b", "b"]', "P.toml:2", "twice"),
        ('from = "a"', "P.toml", "'to' is missing"),
        ('frm = "a"', "P.toml:1", "did you mean 'from'?"),
        ('from = "a"\nto = ["b"]\nmax_wait = 30', "P.toml:3", "a whole number"),
        ('from = "a"\nto = ["b"]\nmax_wait = "soon"', "P.toml:3", "no duration"),
        ('from = "a"\nto = ["b"]\nmax_wait = "UNLIMITED"', "P.toml:3", "no length of time"),
        ('from = "a"\nto = ["b"]\nmax_moves_per_run = 0', "P.toml:3", "at least 1"),
        ('from = "a"\nto = ["b"]\n[target.c]\nboot = "1m"', "P.toml:3", "not in 'to'"),
        ('from = "a"\nto = ["b"]\n[target.b]\nbot = "1m"', "P.toml:4", "boot"),
        ("a = b", "P.toml:1", "TOML"),
        ('from = "a"\nto = ["b"]\npolicy = "zzz"', "P.toml:3", "one of: rules, never, always"),
        ('from = "a"\nto = ["b"]\npolicy = "valu"', "P.toml:3", "did you mean 'value'?"),
        (
            'from = "a"\nto = ["b"]\n[[budget]]\nof = "zz"\nusd_per_month = 5',
            "P.toml:4",
            "one of: user, account",
        ),
        ('from = "a"\nto = ["b"]\nmax_wait = -3', "P.toml:3", 'max_wait = "30m"'),
        ('from = "a"\nto = ["b"]\nmax_wait = "-3m"', "P.toml:3", 'max_wait = "30m"'),
        ('from = "a"\nto = "b"', "P.toml:2", 'to = ["lab-cloud"]'),
        ('from = "a"\nto = ["a", "b"]', "P.toml:2", 'to = ["b"]'),
        ('from = "a"\nto = ["b", "c", "b"]', "P.toml:2", 'to = ["b", "c"]'),
        ('from = "a"\nto = ["b"]\nmax_moves_per_run = -1', "P.toml:3", "max_moves_per_run = 10"),
        ('from = "a"\nto = ["b"]\npolicy = "value"', "P.toml:3", "hour_usd = 20"),
    ],
)
def test_a_wrong_policy_names_its_key_and_the_fix(tmp_path, text, where, says):
    with pytest.raises(InvalidFileError) as caught:
        load_policy(write(tmp_path, text))
    assert where in (caught.value.where or "")
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_a_policy_that_is_not_there_is_one_clear_message(tmp_path):
    with pytest.raises(NotFoundError, match="no file"):
        load_policy(tmp_path / "none.toml")
