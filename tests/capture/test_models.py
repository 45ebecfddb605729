"""What MODEL may be, and what is said when it is not."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from foretrace.capture import capture_graph, catalogue, catalogue_name, resolve_model
from foretrace.capture.families import FAMILIES, recipe_of
from foretrace.capture.models import CATALOGUE, PretrainedModel, UserModel
from foretrace.ir import ForetraceError, UnknownNameError


@pytest.mark.parametrize("spelling", ["gpt2", "GPT2", "openai-community/gpt2", "Llama-3.1-8B", "qwen/qwen3-8b"])
def test_names_answer_in_any_case_with_or_without_organisation(spelling: str) -> None:
    assert isinstance(resolve_model(spelling), PretrainedModel)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'lama-3.1-8b'; nearest: .*Llama-3\.1-8B"):
        resolve_model("lama-3.1-8b")


def test_every_entry_of_the_catalogue_says_where_it_is_from() -> None:
    for name, entry in catalogue().items():
        assert set(entry) == {"parameters", "dtype", "source", "config"}, name
        assert entry["source"]
        assert catalogue_name(name.split("/")[1]) == name


QUICK = {"openai-community/gpt2", "meta-llama/Llama-3.1-405B", "google-t5/t5-small", "microsoft/resnet-50"}
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in catalogue()]


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = resolve_model(name)
    assert isinstance(model, PretrainedModel)
    count = sum(p.numel() for p in model.build(None, "sdpa").parameters())
    assert count == (catalogue()[name]["parameters"] or count)


def test_the_catalogue_is_read_once_by_the_fast_loader_and_has_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    loaders: list[object] = []
    load = yaml.load
    monkeypatch.setattr(yaml, "load", lambda text, loader: loaders.append(loader) or load(text, loader))
    catalogue.cache_clear()
    models = catalogue()
    assert catalogue() is models
    assert loaders == [getattr(yaml, "CSafeLoader", yaml.SafeLoader)] * len(list(CATALOGUE.glob("*.yaml")))
    assert len(models) >= 80
    families = {recipe_of(n, resolve_model(n).config).family.name for n in models}  # type: ignore[union-attr]
    assert families >= {f.name for f in FAMILIES}


TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "torch_dtype": "bfloat16"}


def folder(path: Path, text: str) -> Path:
    (path / "config.json").write_text(text)
    return path


def test_a_folder_with_a_config(tmp_path: Path) -> None:
    graph = capture_graph(str(folder(tmp_path, json.dumps(TINY))))
    assert graph.metadata["dtype"] == "bfloat16"
    assert graph.parameter_count == 2 * 100 * 64 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not valid JSON"),
        ("[]", "config.json: expected an object"),
        ("{}", "names no model_type"),
        ('{"model_type": "lama"}', "unknown model_type 'lama'; nearest: llama"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "transformers refuses the configuration"),
        ('{"model_type": "informer"}', "no way is known to feed a 'informer' model by name"),
        ('{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}', "which is not executed"),
        ("[" * 100000, "config.json: not valid JSON"),
    ],
)
def test_bad_configurations_get_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ForetraceError, match=message):
        resolve_model(str(folder(tmp_path, text)))


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    text = '{"model_type": "timm_wrapper", "architecture": "resnet18", "num_labels": 10}'
    with pytest.raises(ForetraceError, match=r"needs a package that is not installed: .*(PIL|timm)"):
        capture_graph(str(folder(tmp_path, text)))


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_model.py").write_text(
        "import torch\n"
        "def build():\n"
        "    return torch.nn.Linear(8, 4), (torch.zeros(3, 8),)\n"
        "def by_name():\n"
        "    return torch.nn.Linear(8, 4), {'input': torch.zeros(3, 8)}\n"
        "def wrong():\n"
        "    return 3\n"
        "def fails():\n"
        "    return torch.nn.Linear(8, 4), (torch.zeros(3, 9),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_model"
    sys.modules.pop("their_model", None)


def test_a_function_of_the_users(user_file: str) -> None:
    assert isinstance(resolve_model(f"{user_file}:build"), UserModel)
    for function in ("build", "by_name"):
        graph = capture_graph(f"{user_file}:{function}")
        assert graph.flops({}) == 2 * 3 * 8 * 4
        assert graph.parameter_count == 36


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("their_model:bild", "unknown function of their_model 'bild'; nearest: build"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("their_model:wrong", r"expected a tuple \(module, example_inputs\).*, got int"),
        ("their_model:fails", "its forward failed on the meta device"),
    ],
)
def test_bad_functions_get_one_clear_error(user_file: str, spec: str, message: str) -> None:
    with pytest.raises(ForetraceError, match=message):
        capture_graph(spec)


def test_absurd_depths_are_refused_before_they_are_built(tmp_path: Path) -> None:
    for layers in (-1, 0, 1_000_000):
        config = {**TINY, "num_hidden_layers": layers}
        with pytest.raises(ForetraceError, match=r"num_hidden_layers: expected 1 to 10000|refuses the configuration"):
            capture_graph(str(folder(tmp_path, json.dumps(config))))


def test_a_function_that_raises_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising.py").write_text("def build():\n    raise ValueError('no weights here')\n")
    (tmp_path / "broken.py").write_text("def build(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ForetraceError, match="it raised ValueError: no weights here"):
        resolve_model("raising:build")
    with pytest.raises(ForetraceError, match="cannot import 'broken' of 'broken:build': SyntaxError"):
        resolve_model("broken:build")
