"""The training loop, and what one rank does around it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError

from memdiff.chain.noise import Noise, Stream
from memdiff.engine.checkpoint import Checkpoints
from memdiff.engine.engine import start_process_group
from memdiff.errors import EXIT_STOPPED, LOST, CheckpointError, OutOfMemoryError, PeerError, StopRequested
from memdiff.loggers.loggers import Loggers
from memdiff.memory.offload import decoding, scoring
from memdiff.methods.experience import Batch, Clock, Metrics, Round
from memdiff.methods.micro_batches import fits
from memdiff.models.policy import decode_what_fits
from memdiff.processes import landmarks
from memdiff.processes.heartbeat import Heartbeat
from memdiff.processes.stops import Stops
from memdiff.recipe.recipe import Recipe
from memdiff.reporting.grid import image_grid, write_evolution
from memdiff.rewards.guards import alarms, watched
from memdiff.rewards.normalise import from_json, to_json
from memdiff.runtime import incidents
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.training.bookkeeping import SHOWN, Stopwatch, closing, open_loggers, tiles_of
from memdiff.training.build import Parts, build_parts
from memdiff.training.deadline import Deadline
from memdiff.training.environment import describe
from memdiff.training.evaluate import evaluate
from memdiff.training.metrics import plain_row, reset_peak, round_row
from memdiff.training.progress import RunProgress, shown
from memdiff.training.run_folder import Resume, RunFolder
from memdiff.training.run_state import RunState
from memdiff.training.saved_model import describe_model

if TYPE_CHECKING:
    from memdiff.planner.plan import Plan

# By gloo and NCCL, in collectives and where they meet first.
SAID_OF_A_LOST_RANK = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "recvValue failed",
    "sendBytes failed", "Socket Timeout", "Timed out waiting", "NCCL communicator was aborted", "remote process exited",
)  # fmt: skip


def train(
    recipe: Recipe,
    out: Path,
    stops: Stops,
    heartbeat: Heartbeat,
    *,
    resume: Resume = "auto",
    ds_config_file: Path | None = None,
) -> int:
    """This rank's whole part of a run, from the recipe to the saved model. Returns the exit code.

    Until there is something to save, a request to stop raises StopRequested.
    """
    ranks = ranks_of_this_process(stops)
    folder = RunFolder(out)
    with folder.prepare(recipe, resume, ds_config_file) if ranks.is_first else nullcontext():
        with stops.leaving():
            start_process_group(ranks)
            ranks.barrier()
        with one_line():
            return _train_in(folder, recipe, ranks, resume, ds_config_file, stops, heartbeat)


@contextmanager
def one_line() -> Iterator[None]:
    """What a disk or a lost rank raises, in the words of ours."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or 'a file'} can't be used: {error.strerror or error}") from None
    except RuntimeError as error:
        if any(words in str(error) for words in SAID_OF_A_LOST_RANK):
            raise PeerError(f"{LOST}: {str(error).splitlines()[0][:200]}") from None
        raise


def _train_in(
    folder: RunFolder,
    recipe: Recipe,
    ranks: Ranks,
    resume: Resume,
    ds_config_file: Path | None,
    stops: Stops,
    heartbeat: Heartbeat,
) -> int:
    """The same, in a folder that is this run's own, with every rank there."""
    with RunProgress(rounds=recipe.run.rounds, shown=ranks.is_first) as progress:
        progress.say(
            f"loading the model and the rewards on {ranks.world_size} rank(s), "
            f"for which they have {heartbeat.limit / 60:.0f} minutes"
        )
        with stops.leaving():
            parts = build_parts(recipe, ranks, ds_config_file=ds_config_file)
            keep, learners = recipe.run.keep_checkpoints, parts.method.learners
            checkpoints = Checkpoints(folder.checkpoints, ranks, keep=keep, learners=learners, say=progress.say)
            run_state = restore(parts, checkpoints, folder, resume, progress)
            if ranks.is_first:
                environment = describe(ranks, parts.knobs)
                folder.write_status("running", round_number=run_state.round, environment=environment)
                where = f"on {ranks.world_size} x {environment['device']}"
                folder.add_event("resumed" if run_state.round else "started", run_state.round, where)
                if parts.plan:
                    folder.write_plan(parts.plan.to_json())
                    progress.say(planned(parts.plan))
        loggers = open_loggers(recipe, folder, run_state, ranks, progress)
        with memory_told(parts.plan), closing(loggers):
            run = Run(parts, folder, checkpoints, progress, run_state, stops, loggers)
            with stops.leaving():
                rehearse(parts)
                heartbeat.limit = recipe.run.watchdog_seconds
                run.evaluate_the_start()
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
        stops: Stops,
        loggers: Loggers,
    ) -> None:
        self.parts, self.folder, self.checkpoints = parts, folder, checkpoints
        self.progress, self.run_state, self.stops = progress, run_state, stops
        self.is_late = False  # by run.max_hours
        self.deadline = Deadline(parts.recipe.run.max_hours)
        self.saved = run_state.round  # the last round that lies in a checkpoint; 0 for none
        self.loggers, self.halved = loggers, incidents.counts[incidents.HALVED]
        self.seconds = Stopwatch(folder.status().get("seconds"))

    def evaluate_the_start(self) -> None:
        """Before the first round of a run."""
        if self.run_state.round == 0:
            self.evaluate({"round": 0, "update": 0, "images": 0})

    def loop(self) -> int:
        """Rounds from where the run stands to the last. Returns the exit code."""
        recipe, run_state, ranks = self.parts.recipe, self.run_state, self.parts.ranks
        rounds = recipe.run.rounds
        last = run_state.round if run_state.alarm and recipe.guards.stop else rounds
        for number in range(run_state.round + 1, last + 1):
            row = self.round_unless_stopped(number)
            if row is None:
                return self.stopped()
            landmarks.go_to("after the round")
            self.finish(row)
            self.is_late = ranks.any(self.deadline.is_near())
            stopped, alarmed = self.is_late or ranks.asked_to_stop(), run_state.alarm is not None
            if alarmed or number % recipe.run.save_every == 0 or number == rounds:
                self.save()
            if alarmed:
                break
            if stopped and number < rounds:
                return self.stopped()
        self.save_model(self.folder.model)
        alarm = run_state.alarm if run_state.round < rounds else None
        return self.end("complete", 0, f"ended by a guard: {alarm}; to go on, --set guards.stop=false" if alarm else "")

    def round_unless_stopped(self, number: int) -> Metrics | None:
        """None, on all ranks, where a request to stop came before the first update. Its frames, and the tensors in
        them, are gone by then."""
        try:
            return self.round(number)
        except StopRequested as request:
            self.parts.ranks.leave_together(request)
            return None

    def round(self, number: int) -> Metrics:
        """One round's updates, and its row. Raises StopRequested, on all ranks, where a request came before the first
        update: nothing that is saved has changed by then."""
        parts, run_state, updates = self.parts, self.run_state, []
        clock = Clock(parts.ranks.device)
        self.deadline.begin_round()
        reset_peak(parts.ranks)
        landmarks.go_to(f"round {number}")
        with self.stops.leaving(together=True):
            if parts.method.learners:
                parts.ranks.stay_together()  # they learn before the first update: a stop waits for the round's end
            this_round = new_round(parts, number, clock, self.progress)
            experience = parts.method.collect(parts.policy, this_round)
            diagnostics, part = {}, experience
            for part in parts.method.updates(experience):
                diagnostics = parts.method.differentiate(parts.policy, part)
                parts.ranks.stay_together()
                with clock.phase("train"), landmarks.at("apply"):
                    updates.append(parts.engine.apply(parts.method.rate))
        run_state.round, run_state.images = number, run_state.images + this_round.batch.num_images
        run_state.statistics = to_json(parts.reward.statistics)
        run_state.objective = parts.method.state()
        return round_row(parts, run_state, experience, updates, diagnostics, clock)

    def save(self) -> None:
        """A checkpoint of the run as it stands, where there is room for one."""
        with self.deadline.a_save():
            path = self.checkpoints.save(self.parts.engine, vars(self.run_state))
        if path is not None:
            self.saved = self.run_state.round

    def stopped(self) -> int:
        """Ends the run on request, saved as it stands. Returns the exit code."""
        number = self.run_state.round
        why = "stopped for run.max_hours" if self.is_late else "stopped on request"
        if number != self.saved:
            self.save()
        if number != self.saved:
            raise CheckpointError(f"{why}, and round {number} could not be saved; {self.folder.what_is_saved()}")
        if number == 0:
            message = f"{why}; nothing had been trained; the same command starts again"
        else:
            message = f"{why}; round {number} is saved; the same command goes on from there"
        return self.end("stopped", EXIT_STOPPED, message)

    def finish(self, row: Metrics) -> None:
        """Evaluates where it is due, writes the row and shows it."""
        every, number = self.parts.recipe.evaluate.every, row["round"]
        if every and (number % every == 0 or number == self.parts.recipe.run.rounds):
            self.evaluate(row)
        else:
            self.record(row)
        if self.parts.ranks.is_first:
            self.folder.write_status("running", round_number=number, seconds=self.seconds.total())
            halved = incidents.counts[incidents.HALVED]
            if halved > self.halved:
                self.halved = halved
                self.folder.add_event("halved", number, "memory ran out: smaller batches from here on, same gradients")
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
        with landmarks.at("evaluation"):
            result = evaluate(self.parts, self.progress.advance, from_json(self.run_state.evaluate_statistics) or None)
        self.run_state.evaluate_statistics = to_json(result.statistics)
        best = self.run_state.is_best(result.reward_mean)
        if best:
            self.run_state.best_reward, self.run_state.best_round = result.reward_mean, number
            if number > 0:
                self.save_model(self.folder.best_model)
        if ranks.is_first:
            with self.warned("the grid of an evaluation"):
                image_grid(result.images_NHWC[:SHOWN]).save(self.folder.sample_file(number))
                self.folder.write_tiles(number, tiles_of(result))
            self.loggers.image(number, self.folder.sample_file(number))
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
            with self.warned("a row of metrics.jsonl"):
                self.folder.add_row({**row, "alarms": shared_alarms})
            self.loggers.row(row)
        for alarm in shared_alarms:
            self.progress.say(f"alarm at round {row['round']}: {alarm}")
        run_state.alarm = shared_alarms[0] if shared_alarms and parts.recipe.guards.stop else None

    def save_model(self, folder: Path) -> None:
        """What diffusers loads, from the fp32 masters (or their average). Collective."""
        weights, error = self.parts.engine.weights(), None
        with landmarks.at("save model"):
            if self.parts.ranks.is_first:
                try:
                    self.parts.policy.save(folder, weights)
                except (OSError, RuntimeError, SafetensorError) as problem:
                    error = problem
            failure = self.parts.ranks.first_error(error)
        if failure is not None:
            cause = " ".join(failure[2].split())
            raise CheckpointError(f"the model could not be written to {folder}: {cause}; {self.folder.what_is_saved()}")
        if self.parts.ranks.is_first:
            with self.warned("the model's card"):
                environment, rows = self.folder.status().get("environment") or {}, self.folder.rows()
                describe_model(folder, self.parts.recipe, rows, environment, trained_round=self.run_state.round)

    def end(self, state: Literal["complete", "stopped"], exit_code: int, message: str) -> int:
        """Writes the animation and the last word; first the word where somebody waits for the end."""
        if self.parts.ranks.is_first:
            if state == "complete":
                self.write_animation()
            self.folder.write_status(
                state,
                round_number=self.run_state.round,
                exit_code=exit_code,
                message=message,
                ended_by_guard=self.run_state.alarm is not None,
                seconds=self.seconds.total(),
            )
            self.folder.add_event(state, self.run_state.round, message)
            if state == "stopped":
                self.write_animation()
        self.parts.ranks.barrier()
        self.stops.close()
        self.loggers.close(exit_code)
        return exit_code

    def write_animation(self) -> None:
        """Of the evaluations' grids."""
        samples = list(self.folder.sample_files().values())
        if samples:
            with self.warned("the animation"):
                write_evolution(samples, self.folder.samples / "evolution.gif")

    @contextmanager
    def warned(self, what: str) -> Iterator[None]:
        """A file that the run does not need to go on: where it can't be written, a line says so."""
        try:
            yield
        except OSError as error:
            self.progress.say(f"warning: {what} could not be written: {error.filename or ''} {error.strerror or error}")


def planned(plan: "Plan") -> str:
    """What the plan promises, in a line."""
    fits = "" if plan.fits else "; it may not fit: " + "; ".join(plan.notes[:1])
    return f"planned peak {plan.of_budget()}, in {plan.peak_phase}{fits}"


def restore(
    parts: Parts, checkpoints: Checkpoints, folder: RunFolder, resume: Resume, progress: RunProgress
) -> RunState:
    """Loads the newest whole checkpoint, if there is one, and drops what was written after it."""
    latest = checkpoints.restore(parts.engine)
    if latest is None and resume == "must":
        raise CheckpointError(f"--resume must: {checkpoints.folder} holds no checkpoint")
    run_state = RunState()
    if latest is not None:
        path, state = latest
        run_state = RunState(**{key: state[key] for key in vars(run_state) if key in state})
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
    progress.begin_round(number, len(block) * parts.method.passes(policy))
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
    images = count
    while not fits(parts.method.rehearse, policy, noise, images, prompts):
        try:
            parts.method.halve()
        except OutOfMemoryError:
            if images == 1:
                raise
            images = -(-images // 2)  # a rollout is made again in halves too
    with torch.no_grad(), decoding(policy, knobs):
        images_BCHW = decode_what_fits(policy, noise.initial(range(count)).to(policy.device))
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
