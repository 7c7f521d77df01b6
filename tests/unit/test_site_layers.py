"""A site is merged from layers; a wrong file is named with its line and key."""

import textwrap
from decimal import Decimal

import pytest

from hpcscale.errors import InvalidFileError, NotFoundError, UnreachableError
from hpcscale.site import load_site, require_host, site_names
from hpcscale.tomlfile import key_lines

MINE = """
name = "mine"
as_of = 2026-11-01
[fabric]
kind = "infiniband"
[partitions.gpu]
nodes = 2
"""


@pytest.fixture
def layers(tmp_path, monkeypatch):
    """Writes a site file into a layer: layers("etc", "mine", TEXT) -> path."""
    dirs = {"etc": tmp_path / "etc", "user": tmp_path / "user"}
    monkeypatch.setenv("HPCSCALE_ETC_DIR", str(dirs["etc"]))
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", str(dirs["user"]))

    def write(layer, name, text):
        path = dirs[layer] / "sites" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
        return path

    return write


def test_each_layer_wins_over_the_weaker_ones(layers, monkeypatch):
    bundled = load_site("aws-p5")
    assert bundled.site.transport.port == 22
    etc = layers("etc", "aws-p5", 'qos = "etc"\naccount = "etc"\n[transport]\nport = 1\n')
    user = layers("user", "aws-p5", 'account = "user"\n[transport]\nhost = "head"\nport = 2\n')
    loaded = load_site("aws-p5")
    assert (loaded.site.qos, loaded.site.account) == ("etc", "user")
    assert loaded.site.transport.port == 2
    assert loaded.site.transport.kind == "ssh"  # tables merge: the bundled kind stays
    assert loaded.origin("qos") == f"{etc}:1"
    assert loaded.origin("transport.port") == f"{user}:4"
    assert loaded.origin("transport.kind").endswith("site-configs/aws-p5.toml:15")
    assert loaded.origin("transport.user") == "default"

    monkeypatch.setenv("HPCSCALE_SITE__AWS_P5__TRANSPORT__PORT", "3")
    loaded = load_site("aws-p5")
    assert loaded.site.transport.port == 3
    assert loaded.origin("transport.port") == "$HPCSCALE_SITE__AWS_P5__TRANSPORT__PORT"

    loaded = load_site("aws-p5", ["transport.port=4"])
    assert loaded.site.transport.port == 4
    assert loaded.origin("transport.port") == "--set transport.port"


def test_a_list_replaces_a_list(layers):
    layers("etc", "mine", MINE + '[data]\ntags = ["a", "b"]\n')
    layers("user", "mine", '[data]\ntags = ["c"]\n')
    assert load_site("mine").site.data.tags == ("c",)


def test_a_site_of_the_users_own_needs_no_bundled_file(layers):
    layers("user", "mine", MINE)
    assert "mine" in site_names()
    assert load_site("mine").site.partitions["gpu"].nodes == 2


def test_a_variable_finds_keys_with_dashes_and_capitals(layers, monkeypatch):
    layers("user", "mine", MINE + '[software.lab-python]\nvenv = "/a"\n')
    monkeypatch.setenv("HPCSCALE_SITE__MINE__SOFTWARE__LAB_PYTHON__VENV", "/b")
    assert load_site("mine").site.software["lab-python"].venv == "/b"
    monkeypatch.setenv("HPCSCALE_SITE__GENERIC_IB__FABRIC__ENV__NCCL_IB_HCA__VALUE", "=mlx5_0")
    assert load_site("generic-ib").site.fabric.env["NCCL_IB_HCA"].value == "=mlx5_0"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("account=123", "account", "123"),  # digits stay text where text is wanted
        ("account=true", "account", "true"),
        ("gpus_per_node=2", "gpus_per_node", 2),
        ('shared_dirs=["/a", "/b"]', "shared_dirs", ("/a", "/b")),
        ("burst.target=true", "burst.target", True),
        ("price.gpu_hour_usd=6.88", "price.gpu_hour_usd", Decimal("6.88")),
    ],
)
def test_flags_are_read_as_the_key_wants(override, key, value):
    found = load_site("aws-p5", [override]).site
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("override", ["transport.port", "=3", "transport.=3", ".x=1"])
def test_a_flag_without_key_or_value_is_refused(override):
    with pytest.raises(InvalidFileError, match="sets nothing"):
        load_site("aws-p5", [override])


def test_an_overridden_fabric_variable_does_not_keep_the_weaker_layers_source(layers):
    path = layers("user", "generic-ib", '[fabric.env]\nNCCL_IB_HCA = "=mlx5_0,mlx5_3"\n')
    variable = load_site("generic-ib").site.fabric.env["NCCL_IB_HCA"]
    assert variable.value == "=mlx5_0,mlx5_3"
    assert variable.source == str(path)
    assert variable.as_of is None
    assert variable.example is False
    assert variable.note is None


def test_an_override_of_a_variables_note_alone_keeps_its_source(layers):
    layers("user", "generic-ib", '[fabric.env.NCCL_IB_HCA]\nnote = "ours too"\n')
    variable = load_site("generic-ib").site.fabric.env["NCCL_IB_HCA"]
    assert variable.example is True
    assert variable.source.startswith("https://docs.nvidia.com")


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("state_dirr = 1\n", 1, "unknown key 'state_dirr'", "did you mean 'state_dir'"),
        ("[transport]\n\nhots = 'x'\n", 3, "unknown key 'hots' in [transport]", "'host'"),
        ("[fabrik]\nkind = 'x'\n", 1, "unknown key 'fabrik'", "'fabric'"),
        ("zzz = 1\n", 1, "unknown key 'zzz'", "known keys: name, title"),
        ("[transport]\nport = 'x'\n", 2, "key 'transport.port': expected a whole number", "3"),
        ("[transport]\nkind = 'telnet'\n", 2, "key 'transport.kind': invalid enum value", "ssh"),
        ("transport = 3\n", 1, "key 'transport': expected a table", None),
        ("shared_dirs = 'x'\n", 1, "key 'shared_dirs': expected a list", None),
        ("[data]\ntags = ['a', 3]\n", 2, "key 'data.tags[1]': expected text", None),
        ("account = 3\n", 1, "key 'account': expected text in quotes, got a whole", None),
        ("as_of = 'soon'\n", 1, "key 'as_of'", None),
        (
            "[partitions.a]\nnodes = 1\n[partitions.b]\nnodes = 'x'\n",
            4,
            "key 'partitions.b.nodes': expected a whole number",
            None,
        ),
        (
            "[partitions.a]\nnodes = 1\nnoodes = 2\n",
            3,
            "unknown key 'noodes' in [partitions.a]",
            "'nodes'",
        ),
        (
            "[fabric.env.X]\nvalue = 'x'\n",
            1,
            "key 'source' is missing in [fabric.env.X]",
            "add source",
        ),
        ("[partitions.a]\nmax_time = '3x'\n", 2, "'3x' is no duration", None),
        ("default_partition = 'b'\n[partitions.a]\n", 1, "none of [partitions]: a", None),
        ("name = 'other'\n", 1, "says name = 'other'", "name = 'generic-ib'"),
        ("a = \n", 1, "not valid TOML", None),
        ('"""\n', 1, "not valid TOML", None),
    ],
)
def test_a_wrong_file_is_named_with_line_and_key(layers, text, line, message, hint):
    path = layers("user", "generic-ib", text)
    with pytest.raises(InvalidFileError) as caught:
        load_site("generic-ib")
    assert caught.value.where == f"{path}:{line}"
    assert message in caught.value.message
    if hint:
        assert hint in caught.value.hint


def test_a_missing_key_of_a_new_site_names_its_file(layers):
    path = layers("user", "mine", "as_of = 2026-01-01\n")
    with pytest.raises(InvalidFileError, match="key 'fabric' is missing") as caught:
        load_site("mine")
    assert str(path) in caught.value.where


def test_a_wrong_variable_is_named(monkeypatch):
    monkeypatch.setenv("HPCSCALE_SITE__AWS_P5__TRANSPORT__PORT", "twenty")
    with pytest.raises(InvalidFileError) as caught:
        load_site("aws-p5")
    assert caught.value.where == "$HPCSCALE_SITE__AWS_P5__TRANSPORT__PORT"


def test_text_that_is_not_utf8_is_refused(layers):
    path = layers("user", "mine", MINE)
    path.write_bytes(b"title = '\xff'\n")
    with pytest.raises(InvalidFileError, match="not UTF-8"):
        load_site("mine")


def test_an_unknown_site_is_guessed():
    with pytest.raises(NotFoundError) as caught:
        load_site("aws-p4")
    assert "generic-ib" in caught.value.message
    assert caught.value.hint == "--site aws-p5"


def test_a_site_name_is_no_path(layers):
    with pytest.raises(NotFoundError):
        load_site("../sites/aws-p5")


def test_a_template_without_host_loads_and_says_what_to_write(layers):
    site = load_site("aws-p5").site
    with pytest.raises(InvalidFileError) as caught:
        require_host(site)
    path = caught.value.where
    assert path.endswith("user/sites/aws-p5.toml")
    assert 'host = "LOGIN.NODE"' in caught.value.hint
    # following the advice works
    layers("user", "aws-p5", '[transport]\nhost = "head.example.org"\nuser = "me"\n')
    require_host(load_site("aws-p5").site)


@pytest.mark.parametrize("name", ["lab-onprem", "lab-cloud"])
def test_a_lab_site_without_a_lab_says_how_to_start_one(layers, name):
    with pytest.raises(UnreachableError) as caught:
        require_host(load_site(name).site)
    assert caught.value.message == "no lab is running"
    assert caught.value.hint == 'hpcscale lab up, then eval "$(hpcscale lab env)"'


def test_key_lines_of_awkward_toml():
    lines = key_lines(
        textwrap.dedent(
            '''
            a = """
            b = 1
            """
            "quoted key" = 1
            t.u = 2
            [x . "y"]  # comment
            c = [
              1,
            ]
            [[many]]
            d = 1
            '''
        ).lstrip()
    )
    assert lines == {
        "a": 1,
        "quoted key": 4,
        "t.u": 5,
        "x.y": 6,
        "x.y.c": 7,
        "many": 10,
        "many.d": 11,
    }


def test_a_site_file_that_is_a_directory_is_said_to_be_one(layers):
    path = layers("user", "mine", MINE)
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidFileError, match="it is a directory") as caught:
        load_site("mine")
    assert str(path) in str(caught.value.where)


@pytest.mark.parametrize("variable", ["HPCSCALE_SITE__AWS_P6__QOS", "HPCSCALE_SITE__AWS_P5"])
def test_a_variable_that_sets_nothing_is_named(layers, monkeypatch, variable):
    monkeypatch.setenv(variable, "x")
    with pytest.raises(InvalidFileError) as caught:
        load_site("generic-ib")
    assert caught.value.where == f"${variable}"
    assert "AWS_P5" in str(caught.value.hint)


def test_a_default_site_that_does_not_exist_names_its_file(layers, tmp_path):
    layers("user", "mine", MINE)
    config = tmp_path / "user" / "config.toml"
    config.write_text('# mine\ndefault_site = "nowhere"\n')
    with pytest.raises(NotFoundError) as caught:
        load_site("nowhere")
    assert caught.value.where == f"{config}:2"
