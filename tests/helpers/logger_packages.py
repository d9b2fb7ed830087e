"""Stand-ins for wandb and trackio with the signatures of the real ones, which note what they are called with.

Copied from wandb 0.31.0 (sdk/wandb_init.py, sdk/wandb_run.py, sdk/wandb_settings.py) and trackio 0.43.0
(__init__.py, run.py, media/image.py): an argument that they don't take is a TypeError here as there.
"""

from types import ModuleType
from typing import Any

SETTINGS = {"silent", "console", "init_timeout", "finish_timeout"}


class WandbRun:
    """wandb.Run, as far as memdiff calls it. `starting_step` is what the server has of a run that goes on."""

    def __init__(self, calls: list[tuple[str, Any]], starting_step: int) -> None:
        self.calls, self.starting_step = calls, starting_step

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.calls.append(("log", (step, data)))

    def finish(self, exit_code: int | None = None) -> None:
        self.calls.append(("finish", exit_code))


def wandb_package(calls: list[tuple[str, Any]], *, starting_step: int = 0, failure: Exception | None = None) -> Any:
    """The module; `failure` is raised by init."""
    package: Any = ModuleType("wandb")

    def settings(**values: Any) -> dict[str, Any]:
        assert values.keys() <= SETTINGS
        return values

    def init(
        entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
        config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None, job_type=None,
        mode=None, force=None, reinit=None, resume=None, resume_from=None, fork_from=None, save_code=None,
        tensorboard=None, sync_tensorboard=None, monitor_gym=None, settings=None,
    ):  # fmt: skip
        if failure is not None:
            raise failure
        calls.append(("init", {"project": project, "id": id, "name": name, "config": config, "resume": resume}))
        return WandbRun(calls, starting_step)

    package.Settings, package.init = settings, init
    package.Image = lambda data_or_path, mode=None, caption=None: f"image of {data_or_path}"
    return package


class TrackioRun:
    """trackio.Run, as far as memdiff calls it."""

    def __init__(self, calls: list[tuple[str, Any]]) -> None:
        self.calls = calls

    def log(self, metrics: dict, step: int | None = None) -> None:
        self.calls.append(("log", (step, metrics)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def trackio_package(calls: list[tuple[str, Any]]) -> Any:
    """The module that `import trackio` gives."""
    package: Any = ModuleType("trackio")

    def init(
        project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, bucket_id=None, config=None,
        resume="never", settings=None, private=None, embed=True, auto_log_gpu=None, gpu_log_interval=10.0,
        auto_log_cpu=None, cpu_log_interval=10.0, webhook_url=None, webhook_min_level=None,
    ):  # fmt: skip
        calls.append(("init", {"project": project, "name": name, "config": config, "resume": resume}))
        return TrackioRun(calls)

    package.init = init
    package.Image = lambda value, caption=None: f"image of {value}"
    return package
