"""The checks that a run's inputs pass before anything starts; what several runs share is checked once.

In: configs. Out: for each a `CheckedRun`, whose config is bound, or one ValueError. Called by `cluster.train`
and `cluster.series`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.answers import check_answers
from cluster.job import Job, Prompts, Reporter, ResolvedRun, check_job, load_prompts, local_model
from cluster.model_files import check_models, local_models
from cluster.placement import plan
from cluster.run_directory import check_claimable, check_space, reading
from cluster.secrets import check_secrets
from cluster.setting_notes import note_settings
from cluster.user_code import UserCode, check_user_code, own_targets
from configs.bound import BoundRun, bind
from configs.origins import SFT
from configs.schema import RunConfig
from configs.sources import NO_SOURCES, Provenance
from rewards.combine import check_tags
from trainer.data.prompts import check_fields
from trainer.model.checkpoint_format import check_cpu_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRun:
    """A run whose inputs can be used. `given` is its config as the user gave it; `run` has a local model."""

    given: RunConfig
    run: BoundRun
    prompts: Prompts
    code: UserCode
    job: Job

    def on(self, device: str, reporter: Reporter) -> ResolvedRun:
        """The run placed on `device`.

        Raises:
            ValueError: the model, or a frozen one, cannot run on this device.
        """
        if device == "cpu":
            check_cpu_attention(self.run.config.model)
        check_models(self.run, device)
        return ResolvedRun(
            given=self.given,
            run=self.run,
            prompts=self.prompts,
            placement=plan(self.run, device),
            reporter=reporter,
            job=self.job,
            code=self.code,
        )


class InputChecks:
    """Checks runs one after another. `note` receives what is worth a line on the terminal, each text once."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._report, self._noted = note, set[str]()
        # The arms of a comparison mostly share code, prompts and scorers.
        self._codes: dict[str, UserCode] = {}
        self._prompts: dict[str, Prompts] = {}
        self._scored: set[str] = set()

    def check(self, given: RunConfig, job: Job | None = None, sources: Provenance = NO_SOURCES) -> CheckedRun:
        """Check a run's code, folder, secrets, disk space, model and data.

        Raises:
            ValueError: something cannot be used; nothing was started or written. The message names the key,
                and the file of `sources` that set it.
        """
        for text in sources.left_out:
            self._note(text)
        try:
            return self._check(given, job or Job())
        except ValueError as error:
            raise ValueError(sources.name_in(str(error))) from error

    def _check(self, given: RunConfig, job: Job) -> CheckedRun:
        bound = bind(given)
        # Before the model: a wrong name is found in seconds, a download from the hub may take an hour.
        code = self._check_code(bound)
        run = local_models(local_model(bound))
        check_job(given, job)
        check_startable(given, run, code, job)
        if job.rollouts_of is not None:
            with reading(job.rollouts_of):  # fails now, not after the actors have started
                pass
        return CheckedRun(given=given, run=run, prompts=self._load_prompts(run, job), code=code, job=job)

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._report(text)

    def _check_code(self, run: BoundRun) -> UserCode:
        key = repr((sorted(own_targets(run).items()), run.config.allow))
        if key not in self._codes:
            self._codes[key] = check_user_code(run, self._note)
        return self._codes[key]

    def _load_prompts(self, run: BoundRun, job: Job) -> Prompts:
        config = run.config
        # What demonstrations depend on, apart from model and rollout.
        sft = (config.name, config.sft) if SFT in run.losses else None
        key = repr((config.data, config.model, config.rollout, config.eval.every == 0, sft))
        if key not in self._prompts:
            self._prompts[key] = load_prompts(run, self._note)
        note_settings(run, self._note)
        if job.rollouts_of is None:
            check_fields(run.refiner, [each.prompt for each in self._prompts[key].train])
        prompts, scored = self._prompts[key], repr((key, config.scorers))
        if job.rollouts_of is None and scored not in self._scored:
            self._scored.add(scored)
            check_answers(run, [each.prompt for each in prompts.train], self._note)
        return prompts


def check_startable(given: RunConfig, run: BoundRun, code: UserCode, job: Job) -> None:
    """Check that a run could start.

    Raises:
        ValueError: its folder cannot be claimed, the disk has no room, a secret is missing, or two scorers
            use the same tag.
    """
    check_claimable(given, code)
    if job.learns:  # else there are neither checkpoints nor an export
        check_space(run.config)
    check_secrets(run.config)
    check_tags({name: entry.common for name, entry in run.scorers.items()})


def device_without_cluster(config: RunConfig) -> str:
    """The device of a run that joins no cluster: "auto" is checked as CPU, which allows less."""
    return "cuda" if config.cluster.device == "cuda" else "cpu"
