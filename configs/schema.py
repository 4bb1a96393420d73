"""What a run is: the structured config. Class defaults are the setting we have run; presets override a few.

Read by `configs.load` (merging, errors), by `configs.rules` (values that cannot work together) and, as the
resolved `RunConfig`, by everything else. Imports neither torch nor ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Which model is trained."""

    path: str = "lab/bases/voices"
    """Hugging Face folder or name: config.json, safetensors, tokenizer, chat template (for chat prompts)."""
    dtype: str = "fp32"
    """Compute type of learner and engine: fp32 or bf16 (the learner keeps fp32 master weights)."""
    trust_remote_code: bool = False


@dataclass
class DataConfig:
    """Where prompts come from: a kind and its options (see configs/kinds/datasets.py)."""

    train: dict[str, Any] = field(default_factory=lambda: {"kind": "lab", "split": "train"})
    eval: dict[str, Any] = field(default_factory=lambda: {"kind": "lab", "split": "heldout"})
    shuffle: bool = True


@dataclass
class RolloutConfig:
    """How completions are sampled."""

    group_size: int = 8
    groups_per_step: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 40
    max_prompt_tokens: int = 64
    zero_variance_groups: str = "keep"
    """Groups whose rewards are all equal, or with fewer than two: keep (learned from as the rest is), drop
    (weight 0), refill (weight 0, and further groups are sampled in their place)."""
    max_rounds: int = 3
    """With refill: rounds of sampling that a step may take, the first included."""
    max_lag: int = 0
    """Steps a sample may be older than the weights it trains; 1 or more generates while the learner works."""
    group_timeout_s: float = 300.0
    """Limit of one group from its submission until it is judged; while engines are paused it stands still."""
    score_timeout_s: float = 60.0
    """Limit of one scorer on one group; past it the group's scores are null with status timeout."""


@dataclass
class GeneratorConfig:
    """The vLLM engines."""

    num_engines: int = 1
    tensor_parallel: int = 1
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.45
    kv_cache_bytes: int = 268_435_456
    """CPU runs only: bytes of KV cache per engine."""


@dataclass
class LearnerConfig:
    """The DeepSpeed ranks."""

    num_ranks: int = 1
    zero_stage: int = 1
    lr: float = 3.0e-4
    min_lr_ratio: float = 1.0
    """Final learning rate over `lr`; 1.0 keeps it constant after the warm-up."""
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1.0e-8
    max_grad_norm: float = 1.0
    updates_per_step: int = 1
    microbatch_tokens: int = 8192
    """Padded tokens (rows x longest row, prompt included) in one forward of one rank."""
    logit_chunk_tokens: int = 1024
    """Rows of the [tokens, V] logit matrix that exist at a time."""
    max_nonfinite_updates: int = 3
    base_logprobs: bool = True
    """Score every sample under the model of step 0 too (one more forward); false leaves that column null."""
    offload_anchor: bool = False
    """Keep the frozen copy in host memory, on the device only while it scores."""


@dataclass
class ReplayConfig:
    """Groups of earlier steps mixed into each batch as origin replay; `loss.replay` says how they train."""

    groups_per_step: int = 0
    max_age: int = 8
    """Steps back from which groups are drawn."""


@dataclass
class TemperedConfig:
    """Groups of each step sampled at another temperature, of origin tempered; `loss.tempered` trains them."""

    groups_per_step: int = 0
    temperature: float = 1.2
    """Above `rollout.temperature` they raise the policy's entropy, below they lower it."""


@dataclass
class SftConfig:
    """Demonstrations mixed into each batch as origin sft; `loss.sft` says how they train."""

    data: dict[str, Any] = field(default_factory=lambda: {"kind": "lab"})
    """What is shown: a kind and its options (see configs/kinds/demonstrations.py)."""
    share: float = 0.0
    """Demonstrations in a step as a share of its policy rows (group_size x groups_per_step)."""


@dataclass
class KLConfig:
    """coef x k per policy token, with d = log pi - log anchor: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d

    Section `kl` is the anchor to the reference, `kl_base` the one to the model of step 0. In the loss it is
    aggregated as `loss.policy.aggregate` says; `loss.policy.weight` does not scale it.
    """

    estimator: str = "k3"
    coef: float = 0.0
    place: str = "loss"
    """loss (a term per token) or reward (the sum over the row's tokens, taken off before the baseline)."""


@dataclass
class ReferenceConfig:
    """When the reference of `kl`, at first the model of step 0, becomes the policy of that moment.

    Both conditions may be set. ProRL (arXiv 2505.24864) resets reference and optimizer when validation stops
    improving, and reports no numbers for it.
    """

    reset_every: int = 0
    """Steps from one reset to the next; 0 resets on no schedule."""
    plateau_steps: int = 0
    """Reset when the metric's mean over so many steps is at most `plateau_gain` above that of as many before.

    0 never does. Counted anew after every reset.
    """
    plateau_metric: str = "reward/mean"
    plateau_gain: float = 0.0
    reset_optimizer: bool = False
    """Whether a reset clears Adam's moments and step as well."""


@dataclass
class EntropyConfig:
    """-coef x H per policy token, with H the exact entropy of the policy's next token in nats

    A term of the loss beside all others, aggregated as `loss.policy.aggregate` says and not scaled by
    `loss.policy.weight`. With `clamp` above 0, H is that of AEnt, arXiv 2509.03493.
    """

    coef: float = 0.0
    """Taken times the entropy in nats off every policy token's loss; negative values push entropy down."""
    clamp: float = 0.0
    """Share of the vocabulary, the least likely tokens, that the bonus leaves out (AEnt takes 0.25 to 0.33).

    The rest is renormalised. entropy/token_mean is of the whole in any case.
    """


@dataclass
class EvalConfig:
    """Held-out evaluation."""

    every: int = 0
    """Steps between evaluations; 0 evaluates never. Step 0 and the last step are included."""
    num_prompts: int = 64
    num_samples: int = 8
    pass_at: tuple[int, ...] = (1, 4, 8)
    temperature: float = 1.0
    timeout_s: float = 1800.0
    """Limit of one whole evaluation."""


PROBE_TOLERANCE = {"fp32": 1.0e-3, "bf16": 5.0e-2}
"""Mean |engine - learner| logprob in nats that two right implementations stay under, by compute type."""


@dataclass
class SyncConfig:
    """The proof that engine and learner hold the same weights."""

    num_probes: int = 16
    tolerance: float = 0.0
    """Largest mean |engine - learner| logprob on the probes, nats; 0 takes PROBE_TOLERANCE of the dtype."""


@dataclass
class ClusterConfig:
    """Where the actors run."""

    spawn: str = "ray"
    """ray (one process per actor) or local (all in the driver's process, for a debugger)."""
    schedule: str = "take_turns"
    """Who has the cores: take_turns gives each phase all; overlap gives engines and learner their own."""
    max_restarts: int = 3
    """Times an actor may fail within one step before the run ends; each is replaced and its work repeated."""
    restart_backoff_s: float = 1.0
    """Wait before a replacement starts; doubles with every failure within a step, up to 30 s."""
    hang_timeout_s: float = 60.0
    """An actor that gives no sign of life for this long is killed and replaced."""
    device: str = "auto"
    """auto, cpu or cuda."""
    ready_timeout_s: float = 300.0
    call_timeout_s: float = 600.0


@dataclass
class CheckpointConfig:
    """Checkpoints to resume from, and the final model as Hugging Face and vLLM load it."""

    every: int = 10
    """Steps between checkpoints; 0 writes one only when the run ends or is asked to stop."""
    keep: int = 2
    """Checkpoints kept; an old one goes only after the newer ones were read back and verified."""
    export_last: bool = True


@dataclass
class RunConfig:
    """One run. `scorers` maps a name of the user's choice to {kind, weight, combine, ...its options}."""

    name: str = "run"
    runs_dir: str = "runs"
    seed: int = 0
    num_steps: int = 100
    resume: str = "auto"
    """auto resumes a run of this name and experiment; never refuses a name that is taken; changed_code
    resumes it even if files of your own code (a reward function) have changed since it began."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    rollouter: dict[str, Any] = field(default_factory=lambda: {"kind": "single_turn"})
    """What makes a judged group of a prompt: {kind, ...options}. Evaluations always take one turn."""
    scorers: dict[str, Any] = field(default_factory=dict)
    advantage: dict[str, Any] = field(default_factory=lambda: {"kind": "grpo"})
    loss: dict[str, Any] = field(default_factory=lambda: {"policy": {"kind": "ppo_clip"}})
    """By origin: {policy: {kind, weight, aggregate, ...options}, sft: {...}}."""
    token_advantage: dict[str, Any] = field(default_factory=dict)
    """Changes of the policy rows' advantages, token by token, in order: {name: {kind, ...options}}."""
    reward_shape: dict[str, Any] = field(default_factory=dict)
    """Changes of a step's rewards before its advantages, in order: {name: {kind, ...options}}."""
    bonus: dict[str, Any] = field(default_factory=dict)
    """What is added to the policy rows' advantages outside the answer: {name: {kind, ...options}}."""
    prompt_weight: dict[str, Any] = field(default_factory=dict)
    """Factors on the advantages of a prompt's rows: {name: {kind, ...options}}."""
    controllers: dict[str, Any] = field(default_factory=dict)
    """What moves a setting from step to step: {name: {kind, ...options}}."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    tempered: TemperedConfig = field(default_factory=TemperedConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    kl_base: KLConfig = field(default_factory=KLConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    allow: tuple[str, ...] = ()
    """Module prefixes from which a kind may be given as "module:attr"."""
