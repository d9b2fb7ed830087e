"""The training loop: rounds, checkpoints, evaluations, rows, stops."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from memdiff.chain.noise import Noise, Stream
from memdiff.engine.checkpoint import Checkpoints
from memdiff.errors import EXIT_STOPPED, CheckpointError, ConfigError, StopRequested
from memdiff.loggers.loggers import Loggers
from memdiff.methods.experience import Batch, Clock, Metrics, Round
from memdiff.processes import landmarks
from memdiff.processes.stops import Stops
from memdiff.reporting.grid import image_grid, write_evolution
from memdiff.rewards.guards import alarms, watched
from memdiff.rewards.normalise import from_json, to_json
from memdiff.runtime import incidents
from memdiff.runtime.units import counted
from memdiff.training.bookkeeping import SHOWN, Stopwatch, tiles_of
from memdiff.training.build import Parts
from memdiff.training.deadline import Deadline
from memdiff.training.evaluate import evaluate
from memdiff.training.metrics import plain_row, reset_peak, round_row
from memdiff.training.progress import RunProgress
from memdiff.training.run_folder import RunFolder
from memdiff.training.run_state import RunState
from memdiff.training.saved_model import beside, describe_model


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
        failure = self.save_model(self.folder.model)
        if failure is not None:
            raise CheckpointError(f"{failure}; {self.folder.what_is_saved()}")
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
        """Shows the row, evaluates where it is due, and writes it."""
        number = row["round"]
        self.progress.done(number, row)
        if self.parts.recipe.evaluated_after(number):
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

    def evaluate(self, row: Metrics) -> None:
        """Adds an evaluation to the row and writes it; a new best is kept as a model of its own."""
        if not self.parts.recipe.evaluate.every:
            return
        number, ranks = row["round"], self.parts.ranks
        images = self.parts.recipe.evaluate.images
        steps = len(ranks.block(images)) * self.parts.policy.schedule.steps
        if number == 0:
            self.progress.say(f"evaluating the model as it is: {counted(images, 'image')} from fixed noise")
        with landmarks.at("evaluation"), self.progress.evaluating(steps):
            result = evaluate(self.parts, self.progress.advance, from_json(self.run_state.evaluate_statistics) or None)
        self.run_state.evaluate_statistics = to_json(result.statistics)
        best = self.run_state.is_best(result.reward_mean) and self.kept_as_best(number)
        if best:
            self.run_state.best_reward, self.run_state.best_round = result.reward_mean, number
        if ranks.is_first:
            with self.warned("the grid of an evaluation"):
                grid = self.folder.sample_file(number)
                grid.unlink(missing_ok=True)  # a link of that name is not written through
                image_grid(result.images_NHWC[:SHOWN]).save(grid)
                self.folder.write_tiles(number, tiles_of(result))
            self.loggers.image(number, self.folder.sample_file(number))
        evaluated = plain_row({**row, **result.numbers, "evaluate/best": best})
        self.progress.evaluated(number, evaluated, best and number > 0)
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

    def kept_as_best(self, number: int) -> bool:
        """Whether the model lies in `model_best` now; that before the first round needs no place. Collective."""
        failure = self.save_model(self.folder.best_model) if number else None
        if failure is not None:
            self.progress.say(f"warning: {failure}; the run goes on, and the best model before is as it was")
        return failure is None

    def save_model(self, folder: Path) -> str | None:
        """What diffusers loads, from the fp32 masters (or their average). Collective.

        What lies there stays as it was where it can't be written: then the same words on every rank say why.
        """
        weights, error = self.parts.engine.weights(), None
        with landmarks.at("save model"):
            if self.parts.ranks.is_first:
                try:
                    with beside(folder) as partial:
                        landmarks.passed()
                        self.parts.policy.save(partial, weights)
                except (OSError, RuntimeError, SafetensorError) as problem:
                    error = problem
            failure = self.parts.ranks.first_error(error)
        if failure is not None:
            return f"the model could not be written to {folder}: {' '.join(failure[2].split())}"
        if self.parts.ranks.is_first:
            with self.warned("the model's card"):
                environment, rows = self.folder.status().get("environment") or {}, self.folder.rows()
                describe_model(folder, self.parts.recipe, rows, environment, trained_round=self.run_state.round)
        return None

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
        """A file that the run does not need to go on: where it can't be written, or what it is made of can't be read,
        a line says so."""
        try:
            yield
        except OSError as error:
            self.progress.say(f"warning: {what} could not be written: {error.filename or ''} {error.strerror or error}")
        except ConfigError as error:
            self.progress.say(f"warning: {what} could not be written: {error}")


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
