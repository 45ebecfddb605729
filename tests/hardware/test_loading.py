"""Names, counts, `extends`, systems in files, and the words and places of every refusal."""

from pathlib import Path

import pytest

from foretrace.hardware import HardwareError, System, check_file, list_systems, load_system
from foretrace.ir.dtype import parse_dtype
from foretrace.ir.errors import ForetraceError, UnknownNameError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "hw.yaml") -> str:
    (folder / name).write_text(text)
    return name


def refusal(spec: str) -> str:
    with pytest.raises(ForetraceError) as error:
        load_system(spec)
    return str(error.value)


@pytest.mark.parametrize("name", ["h100-sxm", "H100-SXM", "h100", "H100_SXM", "NVIDIA H100 80GB HBM3", " h100 "])
def test_names_and_aliases_in_any_case(name: str) -> None:
    assert load_system(name).name == "h100-sxm"


def test_a_node_of_eight() -> None:
    system = load_system("h100-sxm:8")
    assert (system.count, system.nodes, system.node.accelerators) == (8, 1, 8)
    assert list(system.node.tiers) == ["scale-up", "pcie"]
    assert system.node.fabric is not None
    assert system.node.fabric.bandwidth == 450e9


@pytest.mark.parametrize("count", ["0", "9", "12", "-1", "x", "", "1.5", "9999999999"])
def test_counts_that_make_no_node(count: str) -> None:
    message = refusal(f"h100-sxm:{count}")
    assert "expected" in message
    assert "h100-sxm" in message


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as error:
        load_system("h100-smx")
    assert str(error.value).startswith("unknown hardware 'h100-smx'; nearest: h100-sxm")


@pytest.mark.parametrize("spec", ["", ":", "..", "a:b:c", "../library/h100-sxm", "\0", "x\0.yaml", "no/such.yaml", "."])
def test_odd_specs_are_refused(spec: str) -> None:
    assert refusal(spec)


def test_a_hypothetical_chip_in_three_lines(folder: Path) -> None:
    write(folder, "extends: h100-sxm\nmemory: {bandwidth: 6.7 TB/s}\nname: h100-twice\n")
    chip, base = load_system("hw.yaml:8").accelerator, load_system("h100-sxm").accelerator
    assert (chip.name, chip.extends, chip.aliases) == ("h100-twice", "h100-sxm", ())
    assert chip.memory.bandwidth == 2 * base.memory.bandwidth
    assert chip.memory.capacity_bytes == base.memory.capacity_bytes
    assert chip.compute == base.compute
    assert chip.source("memory.bandwidth") == "set in hw.yaml:2:10"
    assert chip.source("memory.capacity") == base.source("memory.capacity")


def test_a_chip_without_a_name_takes_the_file_s(folder: Path) -> None:
    assert load_system(write(folder, "extends: t4\n", "my-chip.yaml")).accelerator.name == "my-chip"


def test_own_source_covers_what_the_base_says_more_closely(folder: Path) -> None:
    write(folder, "extends: h100-sxm\nmemory: {bandwidth: 9 TB/s}\nsources: {memory: my roadmap}\n")
    assert load_system("hw.yaml").accelerator.source("memory.bandwidth") == "my roadmap"


def test_extends_a_file_beside_it_and_keeps_the_chain(folder: Path) -> None:
    (folder / "chips").mkdir()
    write(folder, "extends: h100-sxm\nname: first\n", "chips/a.yaml")
    write(folder, "extends: a.yaml\ncompute: {matrix: {fp8: 3 PFLOP/s, int8: null}}\n", "chips/b.yaml")
    chip = load_system("chips/b.yaml").accelerator
    assert chip.lineage == ("first", "h100-sxm")
    assert chip.matrix_flops(parse_dtype("fp8")) == 3e15
    assert chip.matrix_flops(parse_dtype("int8")) is None
    assert chip.matrix_flops(parse_dtype("bf16")) == 989.4e12


def test_cycles_are_refused_with_the_chain(folder: Path) -> None:
    write(folder, "extends: b.yaml\n", "a.yaml")
    write(folder, "extends: a.yaml\n", "b.yaml")
    write(folder, "accelerator: d.yaml\n", "c.yaml")
    write(folder, "accelerator: c.yaml\n", "d.yaml")
    assert refusal("a.yaml") == "b.yaml:1:1: extends: extends itself: a.yaml -> b.yaml -> a.yaml"
    assert refusal("c.yaml") == "d.yaml:1:1: accelerator: extends itself: c.yaml -> d.yaml -> c.yaml"


def test_a_system_in_a_file(folder: Path) -> None:
    text = """
        accelerator: {extends: h100, memory: {bandwidth: 5 TB/s}}
        count: 16
        host: {dispatch: 3 us}
        network: {scale_out: {bandwidth: 800 Gb/s}}
    """
    system = load_system(write(folder, text, "cluster.yaml"))
    assert (system.name, system.count, system.nodes, system.node.accelerators) == ("cluster", 16, 2, 8)
    assert system.accelerator.extends == "h100-sxm"
    assert system.host.dispatch_s == 3e-6
    assert system.host.launch_s == load_system("h100").host.launch_s
    assert system.network.scale_out is not None
    assert system.network.scale_out.bandwidth == 1e11
    assert system.network.scale_up == system.accelerator.links.scale_up
    assert load_system("cluster.yaml:32").nodes == 4


def test_a_system_extends_a_system(folder: Path) -> None:
    write(folder, "accelerator: h100\ncount: 8\n", "base.yaml")
    system = load_system(write(folder, "extends: base.yaml\naccelerator: {cores: 100}\n"))
    assert (system.extends, system.accelerator.extends) == ("base", "h100-sxm")
    assert (system.count, system.accelerator.cores) == (8, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory: {bandwidth: 3.35}", 'hw.yaml:2:10: memory.bandwidth: expected e.g. "3.35 TB/s", got "3.35"'),
        ("memory: {bandwith: 3 TB/s}", "hw.yaml:2:10: memory.bandwith: unknown key, did you mean 'bandwidth'?"),
        ("memory: 80 GB", 'hw.yaml:2:1: memory: expected a mapping, got "80 GB"'),
        ("memory: null", "hw.yaml:2:1: memory: expected a mapping, got nothing"),
        ("memory: {usable: 90 GiB}", "hw.yaml:2:10: memory.usable: more than memory.capacity"),
        ("memory: {bandwidth: true}", 'hw.yaml:2:10: memory.bandwidth: expected e.g. "3.35 TB/s", got "True"'),
        (
            "compute:\n  matrix:\n    fp8: 3 TFLOPs",
            "hw.yaml:4:5: compute.matrix.fp8: unit 'TFLOPs' not understood, did you mean 'TFLOP/s'?",
        ),
        ("compute: {matrix: {fp9: 3 TFLOP/s}}", "hw.yaml:2:20: compute.matrix.fp9: unknown dtype 'fp9'; nearest: fp8"),
        (
            "compute: {matrix: {bf16: 3 TFLOP/s, bfloat16: 4 TFLOP/s}}",
            "hw.yaml:2:20: compute.matrix.bf16: written twice: 'bfloat16' is the same dtype",
        ),
        (
            "compute: {energy_per_flop: {bf16: 0.6}}",
            'hw.yaml:2:29: compute.energy_per_flop.bf16: expected e.g. "0.9 pJ/FLOP", got "0.6"',
        ),
        (
            "compute: {energy_per_flop: {bf16: 0.6 pJ/flop}}",
            "hw.yaml:2:29: compute.energy_per_flop.bf16: unit 'pJ/flop' not understood, did you mean 'pJ/FLOP'?",
        ),
        ("compute: {matrix: null, vector: null}", "hw.yaml:2:1: compute: no peak at all: expected e.g. vector"),
        ("compute: {emulated_with: {fp8: fp99}}", "hw.yaml:2:27: compute.emulated_with.fp8: unknown dtype 'fp99'"),
        ("compute: {special_per_clock: .inf}", "hw.yaml:2:11: compute.special_per_clock: "),
        ("cores: 1e12", "hw.yaml:2:1: cores: expected a whole number, got "),
        ("cores: 0", 'hw.yaml:2:1: cores: expected more than 0, got "0"'),
        ("cores: true", "hw.yaml:2:1: cores: expected a whole number, got true"),
        ("kind: gpuu", "hw.yaml:2:1: kind: expected 'gpu', 'tpu', 'npu' or 'cpu', got \"gpuu\""),
        ("kind: no", "hw.yaml:2:1: kind: expected 'gpu', 'tpu', 'npu' or 'cpu', got \"no\""),
        ("name: 7", 'hw.yaml:2:1: name: expected text, got "7"'),
        ('name: "a\\e[31m"', 'hw.yaml:2:1: name: expected printable text on one line, got "a?[31m"'),
        ('"a\\e[31m": 1', "hw.yaml:2:1: a?[31m: unknown key"),
        ("links: {pcie: {bandwidth: 1 GB/s, reduces: yes}}", 'links.pcie.reduces: expected true or false, got "yes"'),
        ("links: [1]", "hw.yaml:2:1: links: expected a mapping, got "),
        ("sources: 5", 'hw.yaml:2:1: sources: expected a mapping, got "5"'),
        ("count: 4", "hw.yaml:2:1: count: a key of a system: name the chip with `accelerator: NAME`"),
    ],
)
def test_messages_name_the_place_and_the_mend(folder: Path, text: str, message: str) -> None:
    write(folder, f"extends: h100-sxm\n{text}\n")
    assert message in refusal("hw.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: h100-smx", "hw.yaml:1:1: unknown hardware 'h100-smx'; nearest: h100-sxm"),
        ("extends: [a]", "hw.yaml:1:1: extends: expected a name or a path, got "),
        ("extends: gone.yaml", "gone.yaml: cannot be read: No such file or directory"),
        ("kind: host", "hw.yaml:1:1: kind: describes a host: expected an accelerator or a system"),
        ("accelerator: 5", 'hw.yaml:1:1: accelerator: expected a mapping, got "5"'),
        ("accelerator: t4\ncount: 12", "hw.yaml:2:1: count: 12 does not fill whole nodes of 8 (node_size)"),
        (
            "accelerator: t4\ncount: 16",
            "hw.yaml:2:1: count: 16 is more than one node of 8 (node_size): expected network",
        ),
        ("accelerator: t4\ncount: 2\nnetwork: {pcie: null}", "hw.yaml:2:1: count: 2, but no link joins them"),
        ("accelerator: t4\nhost: {dispatch: 6}", 'hw.yaml:2:8: host.dispatch: expected e.g. "1.6 us", got "6"'),
        ("accelerator: {extends: t4, cores: -3}", "hw.yaml:1:28: accelerator.cores: expected more than 0"),
        ("cores: 3", "hw.yaml:1:1: clock: missing: Hz that the cores hold"),
    ],
)
def test_messages_of_systems(folder: Path, text: str, message: str) -> None:
    assert message in refusal(write(folder, text))


def test_all_complaints_in_order_of_the_file(folder: Path) -> None:
    write(folder, "extends: t4\ntdp: 70\nclock: fast\ncorse: 3\n")
    lines = refusal("hw.yaml").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["tdp", "clock", "corse"]


def test_an_error_in_a_base_names_the_base(folder: Path) -> None:
    write(folder, "extends: t4\ntdp: 70\n", "base.yaml")
    write(folder, "extends: base.yaml\ncores: 3\n")
    assert refusal("hw.yaml").startswith("base.yaml:2:1: tdp: ")


def test_round_trip_through_yaml(folder: Path) -> None:
    for spec in ("h100-sxm:8", "x86-cpu", "mi250:2", "tpu-v5e"):
        system = load_system(spec)
        (folder / "copy.yaml").write_text(system.to_yaml())
        assert check_file(folder / "copy.yaml") == system


def test_a_path_object_is_a_path(folder: Path) -> None:
    write(folder, "extends: t4\n", "no-suffix")
    assert isinstance(load_system(Path("no-suffix")), System)


def test_describe_gives_value_meaning_and_source() -> None:
    rows = {row.field: row for row in load_system("h100-sxm").describe()}
    bandwidth = rows["accelerator.memory.bandwidth"]
    assert bandwidth.value == "3.35 TB/s"
    assert "bytes/s" in bandwidth.meaning
    assert "H100" in bandwidth.source
    assert rows["accelerator.compute.matrix.bfloat16"].value == "989.4 TFLOP/s"
    older = {row.field: row for row in load_system("m40").describe()}
    assert older["accelerator.cache.bandwidth"].value == "-"
    assert older["accelerator.cache.bandwidth"].source == "not published"
    assert rows["network.scale_up.reduces"].value == "yes"
    assert rows["accelerator.compute.special_per_clock"].value == "16"


def test_listing() -> None:
    summaries = {summary.name: summary for summary in list_systems()}
    assert summaries["this-machine"].bandwidth is None  # listing measures nothing
    assert summaries["a100-sxm-80gb"].peak_flops == 312e12
    assert not any(name.startswith("host-") for name in summaries)
    assert "H100".lower() in summaries["h100-sxm"].aliases
    assert summaries["h100-sxm"].generation == "hopper"


def test_listing_goes_by_vendor_and_generation() -> None:
    names = [summary.name for summary in list_systems()]
    wanted = "mi50 mi300x tpu-v2 tpu-v7 m40 p4 t4 a2 a10 a100-sxm-80gb l4 h100-sxm b200 rtx-5090 this-machine".split()
    assert [name for name in names if name in wanted] == wanted
    assert max(map(len, names)) <= 15  # the table stays within 80 columns


def test_a_sibling_in_the_library_is_no_hypothetical_chip() -> None:
    chip, base = load_system("h800-sxm").accelerator, load_system("h100-sxm").accelerator
    assert chip.lineage == ()
    assert chip.compute.matrix["bfloat16"] == base.compute.matrix["bfloat16"]
    assert chip.links.scale_up is not None
    assert (chip.links.scale_up.bandwidth, chip.links.scale_up.reduces) == (200e9, True)


def test_energy_of_work(folder: Path) -> None:
    write(
        folder,
        "extends: h100-sxm\ncompute: {energy_per_flop: {bf16: 0.6 pJ/FLOP, fp8: 3e-13 J/FLOP, int8: 0.2 pJ/OP}}\n",
    )
    system = load_system("hw.yaml")
    chip = system.accelerator
    assert chip.energy_per_flop(parse_dtype("bf16")) == 0.6e-12
    assert chip.energy_per_flop(parse_dtype("fp8_e5m2")) == 3e-13  # as e4m3
    assert chip.energy_per_flop(parse_dtype("uint8")) == 2e-13
    assert chip.energy_per_flop(parse_dtype("fp32")) is None
    rows = {row.field: row for row in system.describe()}
    assert rows["accelerator.compute.energy_per_flop.bfloat16"].value == "0.6 pJ/FLOP"
    assert rows["accelerator.compute.energy_per_flop.bfloat16"].source.startswith("set in hw.yaml:2")
    assert "J per FLOP" in rows["accelerator.compute.energy_per_flop.bfloat16"].meaning
    (folder / "copy.yaml").write_text(system.to_yaml())
    assert check_file(folder / "copy.yaml") == system


def test_the_host_is_no_accelerator() -> None:
    with pytest.raises(HardwareError, match="describes a host"):
        load_system("host-x86-server")
