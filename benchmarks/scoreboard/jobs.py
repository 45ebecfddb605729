"""What is measured: four groups of jobs."""

from dataclasses import dataclass

MODELS = """
gpt2 gpt2-xl Llama-2-7b-hf Meta-Llama-3-8B Llama-3.1-8B Llama-3.1-405B Llama-3.2-1B SmolLM2-135M SmolLM3-3B Yi-34B
Mistral-7B-v0.1 Mistral-Nemo-Base-2407 Qwen2-0.5B Qwen2.5-7B Qwen3-8B gemma-2b gemma-2-9b gemma-3-1b-pt phi-2
Phi-3-mini-4k-instruct phi-4 OLMo-2-1124-7B falcon-7b falcon-40b mpt-7b bloom-560m opt-1.3b pythia-1.4b gpt-j-6b
gpt-neo-1.3B starcoder2-3b c4ai-command-r-v01 granite-3.0-8b-base stablelm-2-1_6b
Mixtral-8x7B-v0.1 Qwen3-30B-A3B Qwen3-Next-80B-A3B-Instruct DeepSeek-V2-Lite DeepSeek-V3 gpt-oss-20b OLMoE-1B-7B-0924
dbrx-base Llama-4-Scout-17B-16E mamba-2.8b-hf Mamba-Codestral-7B-v0.1 Jamba-v0.1 rwkv-4-169m-pile
bert-base-uncased roberta-base deberta-v3-base ModernBERT-base t5-base bart-base
vit-base-patch16-224 swin-tiny-patch4-window7-224 convnext-tiny-224 resnet-50 dinov2-base clip-vit-base-patch32
whisper-small wav2vec2-base-960h llava-1.5-7b-hf Qwen2-VL-2B-Instruct gemma-3-4b-it
""".split()
GIANTS = ("Llama-3.1-405B", "DeepSeek-V3")
FAST = ("gpt2", "t5-base", "vit-base-patch16-224")
"""The slice that the tests run."""

GROUPS = {"cost": 300, "models": 600, "export": 400, "types": 300}
"""Group → seconds that one job of it may take. Costs come first, while the machine is quiet."""


@dataclass(frozen=True, order=True)
class Job:
    """One measurement: a model of one of `GROUPS`, in one phase."""

    group: str
    name: str
    phase: str

    @property
    def key(self) -> str:
        """How the job is called in files and on the command line: ``models/gpt2/train``."""
        return f"{self.group}/{self.name}/{self.phase}"

    @property
    def alone(self) -> bool:
        """Whether it needs a process of its own: a peak of memory is never forgotten."""
        return self.group == "cost"


def job_of(key: str) -> Job:
    """The job called *key*."""
    return Job(*key.split("/"))


def all_jobs() -> list[Job]:
    """Every job, in the order of the page."""
    from foretrace.capture import resolve_model

    jobs = [Job("cost", name, phase) for name in GIANTS for phase in ("forward", "decode", "train")]
    for name in MODELS:
        phases = resolve_model(name).family.phases
        jobs += [Job("models", name, p) for p in ("forward", "decode", "train") if p in phases]
    jobs += [Job("export", name, "forward") for name in MODELS]
    return jobs + [Job("types", name, "forward") for name in causal_types()]


def causal_types() -> list[str]:
    """Every type that the installed transformers makes a causal language model of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
