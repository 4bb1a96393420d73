"""What a run is: the structured config. Class defaults are the setting we have run; presets override a few.

Read by `configs.load` (merging, errors), by `configs.rules` (values that cannot work together) and, as the
resolved `RunConfig`, by everything else. Imports neither torch nor ray.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from configs.fields import (
    ACTORS,
    EVALUATION,
    EXPERIMENT,
    NOT_EMPTY,
    NOT_NEGATIVE,
    NOTHING,
    POSITIVE,
    SHARE,
    SHARE_ABOVE_ZERO,
    SHARE_BELOW_ONE,
    Rule,
    entries,
    one_of,
    setting,
)

_NAME: Final = Rule(
    lambda value: bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", value)) and ".." not in value,
    "must be a plain folder name: letters, digits, -, _ and single dots, at most 128 long",
)
_ZERO_STAGE: Final = Rule(lambda value: value in range(4), "must be 0, 1, 2 or 3")
_BETAS: Final = Rule(lambda value: all(0 <= beta < 1 for beta in value), "must be at least 0 and below 1")
_PASS_AT: Final = Rule(lambda value: bool(value) and all(k >= 1 for k in value), "must hold numbers above 0")


@dataclass
class ModelConfig:
    """Which model is trained."""

    path: str = setting("lab/bases/voices", EXPERIMENT | ACTORS, NOT_EMPTY)
    """Hugging Face folder or name: config.json, safetensors, tokenizer, chat template (for chat prompts)."""
    dtype: str = setting("fp32", EXPERIMENT | ACTORS, one_of("fp32", "bf16"))
    """Compute type of learner and engine: fp32 or bf16 (the learner keeps fp32 master weights)."""
    trust_remote_code: bool = setting(False, EXPERIMENT | ACTORS)
    """Let transformers and vLLM run the Python code that is in the model folder."""


@dataclass
class DataConfig:
    """Where prompts come from: a kind and its options (see configs/kinds/datasets.py)."""

    train: dict[str, Any] = entries(lambda: {"kind": "lab", "split": "train"}, EXPERIMENT)
    """The prompts to train on: {kind, ...options}."""
    eval: dict[str, Any] = entries(lambda: {"kind": "lab", "split": "heldout"}, EVALUATION)
    """The prompts of evaluations: {kind, ...options}."""
    shuffle: bool = setting(True, EXPERIMENT)
    """Draw training prompts in a new random order each epoch; false keeps the order of the data."""


@dataclass
class RolloutConfig:
    """How completions are sampled."""

    group_size: int = setting(8, EXPERIMENT, POSITIVE)
    """Completions of each prompt, which make one group."""
    groups_per_step: int = setting(16, EXPERIMENT, POSITIVE)
    """Groups that a step trains on."""
    temperature: float = setting(1.0, EXPERIMENT, POSITIVE, movable=True)
    """Divides the logits before sampling; the learner divides by it too."""
    top_p: float = setting(1.0, EXPERIMENT, SHARE_ABOVE_ZERO)
    """Sample from the most likely tokens whose probabilities sum to this; 1.0 uses all."""
    max_tokens: int = setting(40, EXPERIMENT | ACTORS, POSITIVE)
    """Maximum length of a completion, in tokens."""
    max_prompt_tokens: int = setting(64, EXPERIMENT | ACTORS, POSITIVE)
    """Maximum length of a prompt, in tokens; longer prompts are left out, with a note."""
    zero_variance_groups: str = setting("keep", EXPERIMENT, one_of("keep", "drop", "refill"))
    """Groups whose rewards are all equal, or with fewer than two: keep (learned from as the rest is), drop
    (weight 0), refill (weight 0, and further groups are sampled in their place)."""
    max_rounds: int = setting(3, EXPERIMENT, POSITIVE)
    """With refill: rounds of sampling that a step may take, the first included."""
    max_lag: int = setting(0, EXPERIMENT, NOT_NEGATIVE)
    """Steps a sample may be older than the weights it trains; 1 or more generates while the learner works."""
    group_timeout_s: float = setting(300.0, NOTHING, POSITIVE)
    """Limit of one group from submission to scores, waiting for a free scorer included.

    It does not count while engines are paused.
    """
    score_timeout_s: float = setting(60.0, NOTHING, POSITIVE)
    """Limit of one scorer on one group; past it the group's scores are null with status timeout."""


@dataclass
class GeneratorConfig:
    """The vLLM engines."""

    num_engines: int = setting(1, ACTORS, POSITIVE)
    """vLLM engines, each with a copy of the model."""
    tensor_parallel: int = setting(1, ACTORS, POSITIVE)
    """GPUs that share the weights of one engine."""
    max_num_seqs: int = setting(256, ACTORS, POSITIVE)
    """Sequences that an engine generates at the same time."""
    gpu_memory_utilization: float = setting(0.45, ACTORS, SHARE_ABOVE_ZERO)
    """Share of a GPU's memory for vLLM: weights and KV cache."""
    kv_cache_bytes: int = setting(268_435_456, ACTORS, POSITIVE)
    """CPU runs only: bytes of KV cache per engine."""


@dataclass
class LearnerConfig:
    """The DeepSpeed ranks."""

    num_ranks: int = setting(1, ACTORS, POSITIVE)
    """Training processes, one for each GPU; each has a part of the rows."""
    zero_stage: int = setting(1, ACTORS, _ZERO_STAGE)
    """DeepSpeed ZeRO: what ranks share; 1 optimizer state, 2 gradients too, 3 weights too."""
    lr: float = setting(3.0e-4, EXPERIMENT, POSITIVE)
    """Highest learning rate of AdamW."""
    min_lr_ratio: float = setting(1.0, EXPERIMENT, SHARE)
    """Final learning rate over `lr`; 1.0 keeps it constant after the warm-up."""
    warmup_steps: int = setting(0, EXPERIMENT, NOT_NEGATIVE)
    """Steps over which the learning rate grows linearly to `lr`; a cosine follows."""
    weight_decay: float = setting(0.0, EXPERIMENT | ACTORS, NOT_NEGATIVE)
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] = setting((0.9, 0.99), EXPERIMENT | ACTORS, _BETAS)
    """Decay rates of the two moments of AdamW."""
    eps: float = setting(1.0e-8, EXPERIMENT | ACTORS, POSITIVE)
    """Added to the root of AdamW's second moment."""
    max_grad_norm: float = setting(1.0, EXPERIMENT | ACTORS, POSITIVE)
    """Gradients with a larger L2 norm over all weights are scaled down to it."""
    updates_per_step: int = setting(1, EXPERIMENT, POSITIVE)
    """Optimizer updates that the rows of a step are divided into."""
    microbatch_tokens: int = setting(8192, NOTHING, POSITIVE)
    """Padded tokens (rows x longest row, prompt included) in one forward of one rank."""
    logit_chunk_tokens: int = setting(1024, ACTORS, POSITIVE)
    """Rows of the [tokens, V] logit matrix that exist at a time."""
    max_nonfinite_updates: int = setting(3, NOTHING, POSITIVE)
    """Skipped updates in a row (loss or gradient not finite) after which the run stops."""
    base_logprobs: bool = setting(True, EXPERIMENT)
    """Score every sample under the model of step 0 too (one more forward); false leaves that column null."""
    offload_anchor: bool = setting(False, ACTORS)
    """Keep the frozen copy in host memory, on the device only while it scores."""


@dataclass
class ReplayConfig:
    """Groups of earlier steps mixed into each batch as origin replay; `loss.replay` says how they train."""

    groups_per_step: int = setting(0, EXPERIMENT, NOT_NEGATIVE)
    """Replayed groups added to each step; 0 replays none."""
    max_age: int = setting(8, EXPERIMENT, POSITIVE)
    """Steps back from which groups are drawn."""


@dataclass
class TemperedConfig:
    """Groups of each step sampled at another temperature, of origin tempered; `loss.tempered` trains them."""

    groups_per_step: int = setting(0, EXPERIMENT, NOT_NEGATIVE)
    """Tempered groups added to each step; 0 samples none."""
    temperature: float = setting(1.2, EXPERIMENT, POSITIVE, movable=True)
    """Above `rollout.temperature` they raise the policy's entropy, below they lower it."""


@dataclass
class SftConfig:
    """Demonstrations mixed into each batch as origin sft; `loss.sft` says how they train."""

    data: dict[str, Any] = entries(lambda: {"kind": "lab"}, EXPERIMENT)
    """Where demonstrations come from: a kind and its options (see configs/kinds/demonstrations.py)."""
    share: float = setting(0.0, EXPERIMENT, SHARE, movable=True)
    """Demonstrations in a step as a share of its policy rows (group_size x groups_per_step)."""


@dataclass
class KLConfig:
    """coef x k per policy token, with d = log pi - log anchor: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d

    Section `kl` is the anchor to the reference, `kl_base` the one to the model of step 0. In the loss it is
    aggregated as `loss.policy.aggregate` says; `loss.policy.weight` does not scale it.
    """

    estimator: str = setting("k3", EXPERIMENT, one_of("k1", "k2", "k3"))
    """k1, k2 or k3, as above."""
    coef: float = setting(0.0, EXPERIMENT, NOT_NEGATIVE, movable=True)
    """Factor of the KL term; 0 leaves it out."""
    place: str = setting("loss", EXPERIMENT, one_of("loss", "reward"))
    """loss (a term per token) or reward (the sum over the row's tokens, subtracted before the baseline)."""


@dataclass
class ReferenceConfig:
    """When the reference of `kl`, at first the model of step 0, becomes the policy of that moment.

    Both conditions may be set. ProRL (arXiv 2505.24864) resets reference and optimizer when validation stops
    improving, and reports no numbers for it.
    """

    reset_every: int = setting(0, EXPERIMENT, NOT_NEGATIVE)
    """Steps from one reset to the next; 0 resets on no schedule."""
    plateau_steps: int = setting(0, EXPERIMENT, NOT_NEGATIVE)
    """Reset when the metric's mean over so many steps is at most `plateau_gain` above that of as many before.

    0 never does. Counted anew after every reset.
    """
    plateau_metric: str = setting("reward/mean", EXPERIMENT)
    """The metric of `plateau_steps`, by its name in metrics.jsonl."""
    plateau_gain: float = setting(0.0, EXPERIMENT)
    """Gain, in units of the metric, that still counts as a plateau."""
    reset_optimizer: bool = setting(False, EXPERIMENT)
    """Whether a reset clears Adam's moments and step as well."""


@dataclass
class EntropyConfig:
    """-coef x H per policy token, with H the exact entropy of the policy's next token in nats

    A term of the loss beside all others, aggregated as `loss.policy.aggregate` says and not scaled by
    `loss.policy.weight`. With `clamp` above 0, H is that of AEnt, arXiv 2509.03493.
    """

    coef: float = setting(0.0, EXPERIMENT, movable=True)
    """Factor of the entropy (nats) subtracted from every policy token's loss; below 0 it lowers entropy."""
    clamp: float = setting(0.0, EXPERIMENT, SHARE_BELOW_ONE)
    """Share of the vocabulary, the least likely tokens, that the bonus leaves out (AEnt takes 0.25 to 0.33).

    The rest is renormalised. entropy/token_mean is of the whole in any case.
    """


@dataclass
class EvalConfig:
    """Held-out evaluation."""

    every: int = setting(0, EVALUATION, NOT_NEGATIVE)
    """Steps between evaluations; 0 evaluates never. Step 0 and the last step are included."""
    num_prompts: int = setting(64, EVALUATION, POSITIVE)
    """Prompts of `data.eval` in an evaluation, the first ones."""
    num_samples: int = setting(8, EVALUATION, POSITIVE)
    """Completions of each prompt."""
    pass_at: tuple[int, ...] = setting((1, 4, 8), EVALUATION, _PASS_AT)
    """The values of k for which pass@k is estimated."""
    temperature: float = setting(1.0, EVALUATION, POSITIVE)
    """As `rollout.temperature`, for evaluations."""
    timeout_s: float = setting(1800.0, NOTHING, POSITIVE)
    """Limit of one whole evaluation."""


PROBE_TOLERANCE = {"fp32": 1.0e-3, "bf16": 5.0e-2}
"""Mean |engine - learner| logprob in nats that two right implementations stay under, by compute type."""


@dataclass
class SyncConfig:
    """The check that engine and learner have the same weights."""

    num_probes: int = setting(16, ACTORS, POSITIVE)
    """Prompts whose logprobs engine and learner compare after each weight transfer."""
    tolerance: float = setting(0.0, NOTHING, NOT_NEGATIVE)
    """Largest mean |engine - learner| logprob on the probes, nats; 0 takes PROBE_TOLERANCE of the dtype."""


@dataclass
class ClusterConfig:
    """Where the actors run."""

    spawn: str = setting("ray", ACTORS, one_of("ray", "local"))
    """ray (one process per actor) or local (all in the driver's process, for a debugger)."""
    schedule: str = setting("take_turns", ACTORS, one_of("take_turns", "overlap"))
    """Use of the CPU cores: take_turns gives each phase all; overlap gives engines and learner their own."""
    max_restarts: int = setting(3, ACTORS, NOT_NEGATIVE)
    """Times an actor may fail within one step before the run ends; each is replaced and its work repeated."""
    restart_backoff_s: float = setting(1.0, ACTORS, NOT_NEGATIVE)
    """Wait before a replacement starts; doubles with every failure within a step, up to 30 s."""
    hang_timeout_s: float = setting(60.0, ACTORS, POSITIVE)
    """An actor that does not answer, or makes no progress, for this long is killed and replaced."""
    device: str = setting("auto", ACTORS, one_of("auto", "cpu", "cuda"))
    """auto, cpu or cuda."""
    ready_timeout_s: float = setting(300.0, ACTORS, POSITIVE)
    """Limit for actors to start and load the model, in seconds."""
    call_timeout_s: float = setting(600.0, ACTORS, POSITIVE)
    """Limit of one call to an actor, in seconds, such as one update of the learner."""


@dataclass
class CheckpointConfig:
    """Checkpoints to resume from, and the final model as Hugging Face and vLLM load it."""

    every: int = setting(10, NOTHING, NOT_NEGATIVE)
    """Steps between checkpoints; 0 writes one only when the run ends or is asked to stop."""
    keep: int = setting(2, NOTHING, POSITIVE)
    """Checkpoints kept; an old one is deleted only after the newer ones were read back and verified."""
    export_last: bool = setting(True, NOTHING)
    """Write the final model to `export` in the run directory."""


@dataclass
class RunConfig:
    """One run. `scorers` maps a name of the user's choice to {kind, weight, combine, ...its options}."""

    name: str = setting("run", NOTHING, _NAME)
    """Name of the run, and of its folder under `runs_dir`."""
    runs_dir: str = setting("runs", NOTHING, NOT_EMPTY)
    """Folder of all runs."""
    seed: int = setting(0, EXPERIMENT, NOT_NEGATIVE)
    """Seed of everything that is drawn: order of prompts, samples, demonstrations."""
    num_steps: int = setting(100, NOTHING, POSITIVE)
    """Steps to train. A higher number continues a finished run."""
    resume: str = setting("auto", NOTHING, one_of("auto", "never", "changed_code"))
    """auto resumes a run of this name and experiment; never refuses a name that is taken; changed_code
    resumes it even if files of your own code (a reward function) have changed since it began."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    rollouter: dict[str, Any] = entries(lambda: {"kind": "single_turn"}, EXPERIMENT)
    """Makes the scored group of a prompt: {kind, ...options}. Evaluations always take one turn."""
    refiner: dict[str, Any] = entries(lambda: {"kind": "none"}, EXPERIMENT)
    """Adds rows of origin refined to a judged group: {kind, ...options}. Evaluations never refine."""
    scorers: dict[str, Any] = entries(dict, EXPERIMENT)
    """What scores a completion: {name: {kind, weight, combine, ...options}}."""
    advantage: dict[str, Any] = entries(lambda: {"kind": "grpo"}, EXPERIMENT)
    """How rewards become advantages: {kind, ...options}."""
    loss: dict[str, Any] = entries(lambda: {"policy": {"kind": "ppo_clip"}}, EXPERIMENT)
    """By origin: {policy: {kind, weight, aggregate, ...options}, sft: {...}}."""
    token_advantage: dict[str, Any] = entries(dict, EXPERIMENT)
    """Changes of the policy rows' advantages, token by token, in order: {name: {kind, ...options}}."""
    reward_shape: dict[str, Any] = entries(dict, EXPERIMENT)
    """Changes of a step's rewards before its advantages, in order: {name: {kind, ...options}}."""
    bonus: dict[str, Any] = entries(dict, EXPERIMENT)
    """What is added to the policy rows' advantages outside the answer: {name: {kind, ...options}}."""
    prompt_weight: dict[str, Any] = entries(dict, EXPERIMENT)
    """Factors on the advantages of a prompt's rows: {name: {kind, ...options}}."""
    models: dict[str, Any] = entries(dict, EXPERIMENT)
    """Frozen models that scorers and refiners use: {name: {path, task, ...}}."""
    controllers: dict[str, Any] = entries(dict, EXPERIMENT)
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
    allow: tuple[str, ...] = setting((), EXPERIMENT)
    """Module prefixes from which a kind may be given as "module:attr"."""
