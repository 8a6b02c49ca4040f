"""YAML and key=value become a checked configuration; every mistake names file, key and what was expected."""

import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_dist.config import Predict, Prepare, Train
from esl_dist.config_files import (
    from_dictionary,
    load_config,
    save_config,
)
from esl_dist.config_values import limits
from esl_dist.errors import UserError

TRAIN = ("name=run", "source.path=a", "target.path=b")
PREPARE = ("dataset=d", "split=s", "output=o")


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_defaults_then_file_then_words_the_last_one_counts(tmp_path: Path) -> None:
    file = written(tmp_path, "name: run\nsteps: 5\nsource: {path: a, size: [8, 6]}\ntarget: {path: b}\nseed: 1\n")
    config = load_config(Train, file, ["seed=3", "network.architecture=tiny", "seed=4", "target.size=[4,2]"])
    assert (config.name, config.steps, config.seed) == ("run", 5, 4)
    assert (config.source.size, config.target.size) == ([8, 6], [4, 2])
    assert config.network.architecture == "tiny"
    assert config.optimizer.learning_rate == 2.5e-4


def test_a_partly_given_group_keeps_its_other_defaults() -> None:
    weights = load_config(Train, None, [*TRAIN, "method.target={main: 0.5}"]).method.target
    assert (weights.main, weights.auxiliary) == (0.5, 2e-4)


def test_two_configurations_share_no_default() -> None:
    first, second = (load_config(Train, None, TRAIN) for _ in range(2))
    first.optimizer.discriminator_betas.append(1.0)
    first.method.target.main = 9.0
    assert second.optimizer.discriminator_betas == [0.9, 0.99]
    assert load_config(Train, None, TRAIN).method.target.main == 1e-3


@pytest.mark.parametrize("text", ["0001", "1e3", "no", "yes", "3", "0x10", "1_0", "on"])
def test_a_word_for_a_text_is_taken_as_written(text: str) -> None:
    assert load_config(Prepare, None, ["dataset=d", "output=o", f"split={text}"]).split == text


@pytest.mark.parametrize(("text", "value"), [("no", "no"), ("'no'", "no"), ("bf16", "bf16"), ("null", None)])
def test_a_precision_of_no_is_the_word_in_a_file_too(tmp_path: Path, text: str, value: str | None) -> None:
    """YAML takes it for a False."""
    (tmp_path / "recipe.yaml").write_text(f"source: {{path: s}}\nprecision: {text}\n")
    config = load_config(Train, tmp_path / "recipe.yaml")
    assert config.precision == value
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(Train, tmp_path / "saved.yaml").precision == value
    assert load_config(Train, None, [*TRAIN, f"precision={text}"]).precision == value


@pytest.mark.parametrize(
    ("word", "value"),
    [("root=null", None), ("root=", None), ("root=a=b", "a=b"), ("root='a: b'", "a: b"), ("root=/a b/ü", "/a b/ü")],
)
def test_odd_texts(word: str, value: str | None) -> None:
    assert load_config(Prepare, None, [*PREPARE, word]).root == value


def test_a_reference_to_another_setting_or_variable_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_TEST_PLACE", "/somewhere")
    config = load_config(Prepare, None, [*PREPARE, "root=${oc.env:ESL_TEST_PLACE}", "output=${split}"])
    assert (config.root, config.output) == ("/somewhere", "s")


@pytest.mark.parametrize(
    ("word", "unknown", "nearest"),
    [
        ("batch_sise=2", "batch_sise", "batch_size"),
        ("network.arch=tiny", "network.arch", "network.architecture"),
        ("network.foo=1", "network.foo", r"network\.\w+"),
        ("optimizer.multipliers.steem=1", "optimizer.multipliers.steem", "optimizer.multipliers.stem"),
        ("optimiser.momentum=1", "optimiser", "optimizer"),
        ("learning_rate=1", "learning_rate", "optimizer.learning_rate"),
        ("source.pth=x", "source.pth", "source.path"),
        ("zzz=1", "zzz", r"[\w.]+"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(word: str, unknown: str, nearest: str) -> None:
    message = rf"^command line: {re.escape(word)}: unknown setting '{unknown}'; the nearest known one is '{nearest}'$"
    with pytest.raises(UserError, match=message):
        load_config(Train, None, [*TRAIN, word])


def test_an_unknown_setting_in_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: unknown setting 'loader\.worker'.*'loader\.workers'"):
        load_config(Train, written(tmp_path, "loader:\n  worker: 1\n"), TRAIN)


def test_a_dotted_key_in_a_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: .*'network\.architecture'.*without dots, below 'network'"):
        load_config(Train, written(tmp_path, "network.architecture: tiny\n"), TRAIN)


WRONG = [
    (Train, "steps=many", "steps: expected int"),
    (Train, "steps=1e3", "steps: expected int"),
    (Train, "steps=null", "steps: expected int"),
    (Train, "network.auxiliary_head=maybe", "network.auxiliary_head: expected bool"),
    (Train, "network=3", r"network: a group of settings.*network\.architecture"),
    (Train, "network=null", r"network: a group of settings.*network\.architecture"),
    (Train, "source=[1]", r"source: a group of settings.*source\.path"),
    (Train, "optimizer.multipliers=2", r"optimizer\.multipliers: a group of settings"),
    (Train, "optimizer.discriminator_betas=null", r"optimizer\.discriminator_betas: expected list\[float\]"),
    (Train, "source.size=10", r"source\.size: expected list\[int\], such as \[640,480\] or null"),
    (Prepare, "size=10", r"size: expected list\[int\], such as \[640,480\] or null"),
    (Prepare, "size=[a,b]", r"size\[0\]: .*, got a$"),
    (Prepare, "size=[1.5,2]", r"size\[0\]: .*1\.5"),
    (Prepare, "size=[null,2]", r"size\[0\]: "),
    (Prepare, "size={a: 1}", r"size: expected list\[int\], such as \[640,480\] or null"),
    (Prepare, "size.0=3", r"size: expected list\[int\], such as \[640,480\] or null"),
    (Prepare, "root={a: b}", "root: expected str or null"),
    (Prepare, "root=[1]", "root: expected str or null"),
]


@pytest.mark.parametrize(("schema", "word", "message"), WRONG)
def test_a_wrong_type_names_the_setting_and_what_was_expected(schema: type, word: str, message: str) -> None:
    key, _, behind = message.partition(": ")
    said = behind if word.startswith(f"{key.replace(chr(92), '')}=") else message
    with pytest.raises(UserError, match=rf"^command line: {re.escape(word)}: {said}"):
        load_config(schema, None, [*(TRAIN if schema is Train else PREPARE), word])


@pytest.mark.parametrize("text", ["network: 3\n", "network:\n", "network: tiny\n", "network: [1]\n"])
def test_a_group_given_as_one_value_in_a_file_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: network: a group of settings"):
        load_config(Train, written(tmp_path, text), TRAIN)


IMPOSSIBLE = [
    (Train, "seed=-1", "seed=-1.*at least 0"),
    (Train, "batch_size=0", "batch_size=0.*at least 1"),
    (Train, "network.architecture=vgg", "network.architecture=vgg.*one of resnet152, .*, tiny"),
    (Train, "optimizer.learning_rate=0", "optimizer.learning_rate=0.0.*more than 0"),
    (Train, "optimizer.learning_rate=nan", "optimizer.learning_rate=nan.*finite"),
    (Train, "optimizer.learning_rate=.inf", "optimizer.learning_rate=inf.*finite"),
    (Train, "optimizer.momentum=1.5", "optimizer.momentum=1.5.*at most 1"),
    (Train, "optimizer.discriminator_betas=[0.9]", "optimizer.discriminator_betas.*2 values"),
    (Train, "optimizer.discriminator_betas=[0.9,1]", "optimizer.discriminator_betas.*less than 1"),
    (Train, "method.target.main=-1", "method.target.main=-1.0.*at least 0"),
    (Train, "target.size=[3,-2]", r"target.size=\[3, -2\].*at least 1"),
    (Prepare, "size=[10]", r"size=\[10\].*\[width, height\]"),
    (Prepare, "size=[]", r"size=\[\].*\[width, height\]"),
    (Prepare, "size=[1,2,3]", r"size=\[1, 2, 3\].*\[width, height\]"),
    (Prepare, "size=[0,5]", r"size=\[0, 5\].*at least 1"),
    (Prepare, "jpg_quality=101", "jpg_quality=101.*at most 100"),
    (Prepare, "processes=0", "processes=0.*at least 1"),
    (Prepare, "image_format=gif", "image_format=gif.*one of keep, png, jpg"),
]


@pytest.mark.parametrize(("schema", "word", "message"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_its_bound(schema: type, word: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^command line: {message}"):
        load_config(schema, None, [*(TRAIN if schema is Train else PREPARE), word])


def test_an_impossible_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: log_every=0 is impossible"):
        load_config(Train, written(tmp_path, "log_every: 0\n"), TRAIN)


def test_who_gave_a_value_is_blamed_for_it(tmp_path: Path) -> None:
    file = written(tmp_path, "log_every: 0\nsteps: many\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: steps: expected int, such as 20, got many$"):
        load_config(Train, file, TRAIN)
    file = written(tmp_path, "log_every: 0\nname: x\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: log_every=0 is impossible"):
        load_config(Train, file, [*TRAIN, "steps=7"])
    with pytest.raises(UserError, match=r"^command line: log_every=-1 is impossible"):
        load_config(Train, file, [*TRAIN, "log_every=-1"])
    with pytest.raises(UserError, match=r"^command line: steps=0 is impossible"):
        load_config(Train, written(tmp_path, "log_every: 3\n"), [*TRAIN, "steps=0"])


def test_an_empty_word_undoes_a_value_that_may_be_absent(tmp_path: Path) -> None:
    file = written(tmp_path, "target: {path: there}\nname: x\nclass_set: y\n")
    config = load_config(Train, file, ["source.path=a", "target.path=", "class_set=", "name="])
    assert (config.target.path, config.class_set, config.name) == ("", None, None)


@pytest.mark.parametrize("word", ["steps=", "experiments=", "source.path=", "experiments=''", "name=''"])
def test_an_empty_word_is_refused_where_there_has_to_be_a_value(word: str) -> None:
    with pytest.raises(UserError, match=rf"^command line: .*{word.partition('=')[0]}.*(got nothing|an empty text)"):
        load_config(Train, None, [*TRAIN, word])


@pytest.mark.parametrize("text", ["#1", "a #b", "run#3"])
def test_a_hash_begins_no_comment_in_a_word(text: str) -> None:
    assert load_config(Train, None, [*TRAIN, f"class_set={text}"]).class_set == text


@pytest.mark.parametrize("text", ["*.jpg", "[ab].png", "[0-9]*.png", "[a]", "&a/*.png", "{a}/?.png"])
def test_a_pattern_is_taken_as_written(text: str) -> None:
    assert load_config(Predict, None, ["checkpoint=a", "output=b", f"pictures={text}"]).pictures == text


@pytest.mark.parametrize("word", ["source.path='a", 'name="a', "steps=*a", "source.size=[a"])
def test_a_quote_that_is_not_closed_and_what_has_to_be_no_text_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"^command line: .* cannot be read as YAML"):
        load_config(Train, None, [*TRAIN, word])


def test_a_name_in_a_file_is_taken_as_written_too(tmp_path: Path) -> None:
    config = load_config(Train, written(tmp_path, "name: 0001\nclass_set: no\nsource: {path: 1e3}\n"))
    assert (config.name, config.class_set, config.source.path) == ("0001", "no", "1e3")


def test_a_value_of_the_environment_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_TEST_SECRET", "hunter2")
    with pytest.raises(UserError, match=r"^command line: steps: its reference: expected int") as error:
        load_config(Train, None, [*TRAIN, "steps=${oc.env:ESL_TEST_SECRET}"])
    assert "hunter2" not in str(error.value)


def test_what_was_saved_names_no_variable() -> None:
    values = {"name": "${oc.env:HOME}", "source": {"path": "a"}}
    with pytest.raises(UserError, match=r"^manifest: '\$\{oc\.env:HOME\}' is a reference; expected values"):
        from_dictionary(Train, values, "manifest")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: no regular file; expected a YAML file"):
        load_config(Train, tmp_path / "pipe")
    with pytest.raises(UserError, match=r"a folder; expected a YAML file"):
        load_config(Train, tmp_path)
    with pytest.raises(UserError, match="cannot be read: embedded null byte"):
        load_config(Train, Path("a\0b"))
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        load_config(Train, Path("x" * 300))


@pytest.mark.parametrize("key", ["experiments", "source.path", "target.path", "pseudo_labels"])
@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_file_in_the_place_of_a_folder_is_named_with_its_setting(tmp_path: Path, key: str, below: str) -> None:
    file = written(tmp_path, "log_every: 1\n")
    with pytest.raises(UserError) as error:
        load_config(Train, file, [*TRAIN, f"{key}={file}{below}"])
    assert str(error.value).startswith(f"command line: {key}={file}{below} is impossible: {file} is a file; expected a")
    load_config(Train, file, [*TRAIN, f"{key}={tmp_path}{below}"])


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert load_config(Train, written(tmp_path, b"\xef\xbb\xbfname: x\nsource: {path: a}\n")).name == "x"


def test_all_missing_values_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: no value for dataset, output, split; .* dataset=…"):
        load_config(Prepare, written(tmp_path, "root: a\n"))


@pytest.mark.parametrize("word", ["novalue", "=3", "==3", "", "="])
def test_a_word_without_key_or_value_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=rf"command line: '{word}' is not of the form key=value"):
        load_config(Train, None, [*TRAIN, word])


@pytest.mark.parametrize("word", ["name=[1,", "name=*", "[=1", "name=${foo", "name={a: b", "name=a: b: c"])
def test_a_word_that_is_no_yaml_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=rf"^command line: '?{re.escape(word)}'?.*$"):
        load_config(Train, None, [*TRAIN, word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name=${nope}", "name: its reference cannot be resolved: there is no setting nope"),
        ("name=${oc.env:ESL_ABSENT}", "name: .*: the variable ESL_ABSENT is not set in the environment"),
        ("steps=${steps}", "steps: .*: it stands for itself"),
        ("log_every=${oc.create:5}", r"log_every: .* resolved: expected such as \$\{steps\} or \$\{oc.env:VARIABLE\}"),
        ("name=${oc.env:A,B,C}", r"name: .* resolved: expected such as \$\{steps\} or \$\{oc.env:VARIABLE\}"),
        ("name=${", r"name=\$\{: cannot be read: \$\{ begins a reference, expected such as .*"),
    ],
)
def test_a_reference_that_gives_nothing_is_refused_in_words_of_people(word: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^command line: {message}$"):
        load_config(Train, None, [*TRAIN, word])


@pytest.mark.parametrize(
    "word", ["steps=???", "name=???", "name='???'", "source.size=['???',2]", "method={name: '???'}"]
)
def test_a_value_that_stands_for_none_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"^command line: .*: \?\?\? stands for no value; give one, or leave"):
        load_config(Train, None, [*TRAIN, word])


@pytest.mark.parametrize("word", ["network.=x", "source..path=x", ".steps=5", " =5", "source. .path=x"])
def test_a_key_with_an_empty_part_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"^command line: '{re.escape(word)}' has an empty part before = or between"):
        load_config(Train, None, [*TRAIN, word])


def test_a_long_unknown_key_is_shortened() -> None:
    with pytest.raises(UserError, match=r"unknown setting 'x{100}…'; the nearest") as error:
        load_config(Train, None, [*TRAIN, f"{'x' * 2000}=1"])
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "a: 1\n b: 2", "\t\n", "name: *x", "name: a\nname: b\n", "name: !!python/object:os.system x\n"),
        *("---\na: 1\n---\nb: 1\n", "null: 2\n", "3", "- a\n", b"\xff\xfe\x00", "name: ${foo\n"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_on_one_line(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(
        UserError, match=r"recipe\.yaml: (cannot be read|expected settings of the form|a key is nothing)"
    ) as e:
        load_config(Train, written(tmp_path, text))
    assert "\n" not in str(e.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: no such configuration file"):
        load_config(Train, tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=tmp_path.name):
        load_config(Train, tmp_path)


def test_an_empty_file_is_one_without_settings(tmp_path: Path) -> None:
    assert load_config(Train, written(tmp_path, "# nothing\n"), TRAIN) == load_config(Train, None, TRAIN)


@settings(max_examples=40, deadline=None)
@given(word=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), key=st.sampled_from(["", "name=", "size="]))
def test_no_word_gives_anything_but_a_configuration_or_one_message(word: str, key: str) -> None:
    with suppress(UserError):
        load_config(Prepare, None, [*PREPARE, key + word])


def test_a_saved_configuration_comes_back_whole(tmp_path: Path) -> None:
    config = load_config(Train, None, [*TRAIN, "target.size=[4,2]", "optimizer.momentum=0.25", "class_set=0001"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Train, tmp_path / "config.yaml") == config
    assert from_dictionary(Train, asdict(config), "there") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "expected settings by name"),
        ([1], "expected settings by name"),
        ({"nope": 1}, "unknown setting 'nope'"),
        ({"network": 3}, "network: a group"),
        ({"name": "x"}, r"no value for source\.path"),
        ({"name": "x", "source": {"path": "a"}, "target": {"path": "b"}, "seed": -1}, "seed=-1 is impossible"),
    ],
)
def test_dictionaries_are_read_as_strictly_as_files(values: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^manifest: {message}"):
        from_dictionary(Train, values, "manifest")


def test_bounds_hold_for_every_member_of_a_list() -> None:
    @dataclass
    class Some:
        shares: Annotated[list[float], limits(more_than=0, at_most=1)] = field(default_factory=list)

    assert load_config(Some, None, ["shares=[0.1,1]"]).shares == [0.1, 1.0]
    with pytest.raises(UserError, match=r"shares=\[0\.1, 0\.0\].*more than 0"):
        load_config(Some, None, ["shares=[0.1,0]"])


def test_a_word_that_is_not_utf_8_is_refused() -> None:
    word = os.fsdecode(b"root=/data/\xff")
    with pytest.raises(UserError) as error:
        load_config(Prepare, None, [*PREPARE, word])
    assert str(error.value) == (
        r"command line: 'root=/data/\udcff' is not UTF-8; expected text, so rename what it names"
    )
