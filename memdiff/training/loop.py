"""The training loop, and what one rank does around it."""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.engine.checkpoint import Checkpoints
from memdiff.engine.engine import start_process_group
from memdiff.errors import EXIT_STOPPED, CheckpointError, OutOfMemoryError
from memdiff.memory.offload import decoding, scoring
from memdiff.methods.experience import Batch, Clock, Metrics, Round
from memdiff.methods.micro_batches import fits
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.grid import image_grid, write_evolution
from memdiff.rewards.guards import alarms, watched
from memdiff.rewards.normalise import from_json, to_json
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.training.build import Parts, build_parts
from memdiff.training.environment import describe
from memdiff.training.evaluate import evaluate
from memdiff.training.metrics import plain_row, reset_peak, round_row
from memdiff.training.progress import RunProgress, shown
from memdiff.training.run_folder import Resume, RunFolder
from memdiff.training.run_state import RunState

if TYPE_CHECKING:
    from memdiff.planner.plan import Plan


def train(recipe: Recipe, out: Path, *, resume: Resume = "auto", ds_config_file: Path | None = None) -> int:
    """This rank's whole part of a run, from the recipe to the saved model. Returns the exit code."""
    ranks = ranks_of_this_process()
    folder = RunFolder(out)
    with folder.prepare(recipe, resume, ds_config_file) if ranks.is_first else nullcontext():
        start_process_group(ranks)
        ranks.barrier()
        return _train_in(folder, recipe, ranks, resume, ds_config_file)


def _train_in(folder: RunFolder, recipe: Recipe, ranks: Ranks, resume: Resume, ds_config_file: Path | None) -> int:
    """The same, in a folder that is this run's own, with every rank there."""
    with stop_signals() as stop, RunProgress(rounds=recipe.run.rounds, shown=ranks.is_first) as progress:
        progress.say(f"loading the model and the rewards on {ranks.world_size} rank(s)")
        parts = build_parts(recipe, ranks, ds_config_file=ds_config_file)
        checkpoints = Checkpoints(folder.checkpoints, ranks, keep=recipe.run.keep_checkpoints)
        run_state = restore(parts, checkpoints, folder, resume, progress)
        if ranks.is_first:
            folder.write_status("running", round_number=run_state.round, environment=describe(ranks, parts.knobs))
            if parts.plan:
                folder.write_plan(parts.plan.to_json())
                progress.say(planned(parts.plan))
        with memory_told(parts.plan):
            rehearse(parts)
            run = Run(parts, folder, checkpoints, progress, run_state, stop)
            return run.loop()


class Run:
    """The loop and its bookkeeping on one rank."""

    def __init__(
        self,
        parts: Parts,
        folder: RunFolder,
        checkpoints: Checkpoints,
        progress: RunProgress,
        run_state: RunState,
        stop: Sequence[int],
    ) -> None:
        self.parts, self.folder, self.checkpoints = parts, folder, checkpoints
        self.progress, self.run_state, self.stop = progress, run_state, stop

    def loop(self) -> int:
        """Rounds from where the run stands to the last. Returns the exit code."""
        parts, rounds = self.parts, self.parts.recipe.run.rounds
        if self.run_state.round == 0:
            self.evaluate({"round": 0, "update": 0, "images": 0})
        last = self.run_state.round if self.run_state.alarm and parts.recipe.guards.stop else rounds
        for number in range(self.run_state.round + 1, last + 1):
            clock = Clock(parts.ranks.device)
            reset_peak(parts.ranks)
            this_round = new_round(parts, number, clock, self.progress)
            experience = parts.method.collect(parts.policy, this_round)
            updates, diagnostics, part = [], {}, experience
            for part in parts.method.updates(experience):
                diagnostics = parts.method.differentiate(parts.policy, part)
                with clock.phase("train"):
                    updates.append(parts.engine.apply(parts.method.rate))
            self.run_state.round, self.run_state.images = number, self.run_state.images + this_round.batch.num_images
            self.run_state.statistics = to_json(parts.reward.statistics)
            self.run_state.objective = parts.method.state()
            row = round_row(parts, self.run_state, experience, updates, diagnostics, clock)
            del experience, part  # or this round's trajectory would live on beside the next one's
            self.finish(row)
            stopped, alarmed = self.someone_asked_to_stop(), self.run_state.alarm is not None
            if stopped or alarmed or number % parts.recipe.run.save_every == 0 or number == rounds:
                self.checkpoints.save(parts.engine, vars(self.run_state), parts.method.learners)
            if alarmed:
                break
            if stopped and number < rounds:
                return self.end("stopped", EXIT_STOPPED, "stopped on request and saved; run the same command again")
        self.save_model(self.folder.model)
        alarm = self.run_state.alarm if self.run_state.round < rounds else None
        return self.end("complete", 0, f"ended by a guard: {alarm}; to go on, --set guards.stop=false" if alarm else "")

    def finish(self, row: Metrics) -> None:
        """Evaluates where it is due, writes the row and shows it."""
        every, number = self.parts.recipe.evaluate.every, row["round"]
        if every and (number % every == 0 or number == self.parts.recipe.run.rounds):
            self.evaluate(row)
        else:
            self.record(row)
        if self.parts.ranks.is_first:
            self.folder.write_status("running", round_number=number)
            if self.parts.plan and row["peak_bytes"]:
                self.folder.write_plan({**self.parts.plan.to_json(), "measured_peak_bytes": row["peak_bytes"]})
        self.progress.done(number, row)

    def evaluate(self, row: Metrics) -> None:
        """Adds an evaluation to the row and writes it; a new best is kept as a model of its own."""
        if not self.parts.recipe.evaluate.every:
            return
        number, ranks = row["round"], self.parts.ranks
        steps = len(ranks.block(self.parts.recipe.evaluate.images)) * self.parts.policy.schedule.steps
        self.progress.begin("evaluating", steps)
        result = evaluate(self.parts, self.progress.advance, from_json(self.run_state.evaluate_statistics) or None)
        self.run_state.evaluate_statistics = to_json(result.statistics)
        best = self.run_state.is_best(result.reward_mean)
        if best:
            self.run_state.best_reward, self.run_state.best_round = result.reward_mean, number
            if number > 0:
                self.save_model(self.folder.best_model)
        if ranks.is_first:
            image_grid(result.images_NHWC[:64]).save(self.folder.sample_file(number))
        evaluated = plain_row({**row, **result.numbers, "evaluate/best": best})
        numbers = {key.removeprefix("evaluate/"): evaluated[key] for key in result.numbers}
        summary = "  ".join(
            f"{key} {shown(value, '.3f')}" for key, value in numbers.items() if not key.startswith("reward_std/")
        )
        self.progress.say(f"evaluation at round {number}: {summary}{'  (best so far)' if best and number else ''}")
        self.record(evaluated)

    def record(self, row: Metrics) -> None:
        """Writes a row, with the guards' alarms in it; the first rank's word on them counts on all."""
        parts, run_state = self.parts, self.run_state
        run_state.first = watched(row, parts.held_out) | run_state.first
        own_alarms = alarms(row, run_state.first, parts.recipe.guards, parts.held_out)
        shared_alarms: list[str] = json.loads(parts.ranks.broadcast(json.dumps(own_alarms)) or "[]")
        if parts.ranks.is_first:
            self.folder.add_row({**row, "alarms": shared_alarms})
        for alarm in shared_alarms:
            self.progress.say(f"alarm at round {row['round']}: {alarm}")
        run_state.alarm = shared_alarms[0] if shared_alarms and parts.recipe.guards.stop else None

    def save_model(self, folder: Path) -> None:
        """What diffusers loads, from the fp32 masters (or their average). Collective."""
        weights = self.parts.engine.weights()
        if self.parts.ranks.is_first:
            self.parts.policy.save(folder, weights)
        self.parts.ranks.barrier()

    def someone_asked_to_stop(self) -> bool:
        """Whether any rank got a signal: all ranks stop at the same round."""
        flag = torch.tensor(float(len(self.stop) > 0), device=self.parts.ranks.device)
        return float(self.parts.ranks.max(flag)) > 0

    def end(self, state: Literal["complete", "stopped"], exit_code: int, message: str) -> int:
        """Writes the animation and the last word."""
        if self.parts.ranks.is_first:
            samples = list(self.folder.sample_files().values())
            if samples:
                write_evolution(samples, self.folder.samples / "evolution.gif")
            self.folder.write_status(
                state,
                round_number=self.run_state.round,
                exit_code=exit_code,
                message=message,
                ended_by_guard=self.run_state.alarm is not None,
            )
        self.parts.ranks.barrier()
        return exit_code


def planned(plan: "Plan") -> str:
    """What the plan promises, in a line."""
    gib = 2**30
    fits = "" if plan.fits else "; it may not fit: " + "; ".join(plan.notes[:1])
    return f"planned peak {plan.peak_bytes / gib:.2f} of {plan.budget_bytes / gib:.2f} GiB, in {plan.peak_phase}{fits}"


def restore(
    parts: Parts, checkpoints: Checkpoints, folder: RunFolder, resume: Resume, progress: RunProgress
) -> RunState:
    """Loads the newest whole checkpoint, if there is one, and drops what was written after it."""
    latest = checkpoints.latest()
    if latest is None and resume == "must":
        raise CheckpointError(f"--resume must: {checkpoints.folder} holds no checkpoint")
    run_state = RunState()
    if latest is not None:
        path, state = latest
        checkpoints.load(parts.engine, path, parts.method.learners)
        run_state = RunState(**{key: state[key] for key in vars(run_state)})
        parts.reward.statistics = from_json(run_state.statistics)
        parts.method.restore(run_state.objective)
        progress.say(f"resuming after round {run_state.round} from {path}")
    if parts.ranks.is_first:
        folder.drop_rows_after(run_state.round if latest else -1)
        folder.drop_samples_after(run_state.round if latest else -1)
    parts.ranks.barrier()
    return run_state


def new_round(parts: Parts, number: int, clock: Clock, progress: RunProgress) -> Round:
    """This rank's images of a round, and its progress bar."""
    recipe, policy = parts.recipe, parts.policy
    block = parts.ranks.block(recipe.run.images_per_round)
    noise = Noise(seed=recipe.run.seed, stream=Stream.ROLLOUT, round_number=number, shape=policy.shape)
    progress.begin(f"round {number}", len(block) * parts.method.passes(policy))
    count = recipe.run.images_per_round
    all_prompts = parts.prompts.of(recipe.run.seed, number, range(count), count)
    prompts = all_prompts[block.start : block.stop]
    policy.encode(prompts)
    batch = Batch(block, prompts, count, noise, all_prompts)
    return Round(batch, clock, progress.advance)


def rehearse(parts: Parts) -> None:
    """One piece of every kind at its full batch and one reward call, so that a misfit shows before the first round.

    Gradients are thrown away and weights stay as they are.
    """
    policy, knobs = parts.policy, parts.knobs
    count = max(1, min(knobs.rollout_batch, len(parts.ranks.block(parts.recipe.run.images_per_round))))
    noise = Noise(seed=parts.recipe.run.seed, stream=Stream.PROBE, round_number=0, shape=policy.shape)
    prompts = parts.prompts.of_evaluation(range(count))
    policy.encode(prompts)
    while not fits(parts.method.rehearse, policy, noise, count, prompts):
        parts.method.halve()
    with torch.no_grad(), decoding(policy, knobs):
        images_BCHW = policy.decode(noise.initial(range(count)).to(policy.device))
        with scoring(parts.eval_reward, knobs):
            parts.eval_reward.raw(images_BCHW, prompts)
    parts.engine.gradients.zero()


@contextmanager
def memory_told(plan: "Plan | None") -> Iterator[None]:
    """Running out of memory ends the run with the plan's three best suggestions."""
    try:
        yield
    except (torch.OutOfMemoryError, OutOfMemoryError) as error:
        what = str(error).splitlines()[0]
        advice = plan.suggestions() if plan else ["--set memory.activation_checkpointing=blocks", "an adapter"]
        raise OutOfMemoryError(f"{what}; what would help: {'; '.join(advice)}") from None


@contextmanager
def stop_signals() -> Iterator[Sequence[int]]:
    """Collects SIGTERM and SIGINT; a second one ends the process at once."""
    seen: list[int] = []

    def note(number: int, _: Any) -> None:
        if seen:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
