"""One rank's whole part of a run, from the recipe to the saved model."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.engine.checkpoint import Checkpoints
from memdiff.engine.process_group import start_process_group
from memdiff.errors import LOST, CheckpointError, ConfigError, OutOfMemoryError, PeerError
from memdiff.memory.offload import decoding, scoring
from memdiff.methods.micro_batches import fits
from memdiff.models.policy import decode_what_fits
from memdiff.processes.heartbeat import Heartbeat
from memdiff.processes.rank import under_launcher
from memdiff.processes.stops import Stops
from memdiff.recipe.contents import paths_of
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.normalise import from_json
from memdiff.runtime.announce import said_if_slow
from memdiff.runtime.file_errors import disk_told
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.runtime.units import counted, duration
from memdiff.training.bookkeeping import closing, open_loggers
from memdiff.training.build import Parts, build_parts
from memdiff.training.environment import describe
from memdiff.training.loop import Run
from memdiff.training.one_folder import refuse_other_folders
from memdiff.training.progress import RunProgress
from memdiff.training.run_folder import Resume, RunFolder
from memdiff.training.run_state import RunState

if TYPE_CHECKING:
    from memdiff.planner.plan import Plan

SECONDS_OF_LOADING = 300.0  # until a line says that it goes on

# By gloo and NCCL, in collectives and where they meet first.
SAID_OF_A_LOST_RANK = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "recvValue failed",
    "sendBytes failed", "Socket Timeout", "Timed out waiting", "NCCL communicator was aborted", "remote process exited",
)  # fmt: skip


def train_rank(
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
    check_launch(recipe, ranks)
    folder = RunFolder(out)
    with folder.prepare(recipe, resume, ds_config_file) if ranks.is_first else nullcontext():
        with stops.leaving():
            start_process_group(ranks)
            ranks.barrier()
            refuse_other_folders(folder, ranks)
        with one_line(folder.path, *paths_of(recipe)):
            return _train_in(folder, recipe, ranks, resume, ds_config_file, stops, heartbeat)


def check_launch(recipe: Recipe, ranks: Ranks) -> None:
    """Raises ConfigError where a launcher that is not memdiff's started more ranks than there are images or devices."""
    recipe.check_world_size(ranks.world_size)
    if ranks.device.type != "cuda" or ranks.device.index < torch.cuda.device_count():
        return
    count = torch.cuda.device_count()
    raise ConfigError(f"the launcher started more ranks on {socket.gethostname()} than its {count} GPUs; use {count}")


@contextmanager
def one_line(*named: object) -> Iterator[None]:
    """What a disk, one of the files that a person `named`, or a lost rank raises, in the words of ours."""
    try:
        with disk_told(*named):
            yield
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
    rounds, evaluated_after = recipe.run.rounds, recipe.evaluated_after
    with RunProgress(rounds=rounds, shown=ranks.is_first, evaluated_after=evaluated_after) as progress:
        progress.say(f"loading the model and the rewards on {counted(ranks.world_size, 'rank')}")
        with stops.leaving(), said_if_slow(patience(heartbeat), progress.say, after=SECONDS_OF_LOADING):
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
                with said_if_slow("trying one piece of each kind at its full batch", progress.say):
                    rehearse(parts)
                heartbeat.limit = recipe.run.watchdog_seconds
                run.evaluate_the_start()
            return run.loop()


def patience(heartbeat: Heartbeat) -> str:
    """What is said of a model that takes its time: downloads, slow disks, a compiler."""
    until = f"; it is waited for up to {duration(heartbeat.limit)}" if under_launcher() else ""
    return f"still loading{until}"


def planned(plan: "Plan") -> str:
    """What the plan promises, in a line."""
    fits = "" if plan.fits else "; it may not fit"
    warnings = "".join(f"; {note}" for note in plan.warnings())
    return f"planned peak {plan.of_budget()}, in {plan.peak_phase}{fits}{warnings}"


def restore(
    parts: Parts, checkpoints: Checkpoints, folder: RunFolder, resume: Resume, progress: RunProgress
) -> RunState:
    """Loads the newest whole checkpoint, if there is one, and drops what was written after it."""
    run_state = RunState()

    def take_up(state: dict[str, Any]) -> None:
        nonlocal run_state
        run_state = RunState.of(state)
        parts.reward.statistics = from_json(run_state.statistics)
        parts.method.restore(run_state.objective)

    latest = checkpoints.restore(parts.engine, take_up)
    if latest is None and resume == "must":
        raise CheckpointError(f"--resume must: {checkpoints.folder} holds no checkpoint")
    if latest is not None:
        progress.say(f"resuming after round {run_state.round} from {latest[0]}")
    if parts.ranks.is_first:
        folder.drop_rows_after(run_state.round if latest else -1)
        folder.drop_samples_after(run_state.round if latest else -1)
    parts.ranks.barrier()
    return run_state


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
