"""The file of a reward function: imported here, or tried in a process of its own before a run starts. No torch."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memdiff.errors import ConfigError
from memdiff.runtime.announce import said_if_slow
from memdiff.runtime.small_files import read_small_file

SECONDS = 120.0  # some files import much; a download belongs into the function, or before the run
MOST_BYTES = 10**7
WORD = "MEMDIFF_REWARD_FILE_SAYS"  # the descriptor on which the trying process says how it went
FINE = "fine"


def load_function(file: Path, name: str) -> Callable[..., Any]:
    """The function of that name in a user's file. Raises ConfigError in one line.

    The file may import modules that lie beside it, now and in the function: its folder is the last place that Python
    looks in, so that it hides nothing that is installed.
    """
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"memdiff_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"reward file {file} is not a Python file; give one that ends in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # importing a user's file may raise anything
        advice = f"; install its package for {sys.executable}" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"reward file {file} can't be imported: {type(error).__name__}: {error}{advice}") from error
    function = vars(module).get(name)
    if not callable(function):
        raise ConfigError(f"reward file {file} has no function {name}")
    return function


def check_file(file: Path, name: str, *, seconds: float = SECONDS) -> None:
    """Raises ConfigError in one line where `load_function` would, or the file ends or stops the process it is in.

    Syntax is looked at here, the rest in a process that imports the file as a rank would.
    """
    try:
        compile(read_small_file(file, what="reward file", most_bytes=MOST_BYTES), str(file), "exec", dont_inherit=True)
    except FileNotFoundError:
        raise ConfigError(f"no such reward file: {file}") from None
    except SyntaxError as error:
        raise ConfigError(f"reward file {file}, line {error.lineno}: {type(error).__name__}: {error.msg}") from None
    except ValueError as error:  # NUL bytes
        raise ConfigError(f"reward file {file} is no Python: {error}") from None
    said, code = _tried(file, name, seconds)
    if said == FINE:
        return
    if said:
        raise ConfigError(said)
    if code is None:
        raise ConfigError(
            f"reward file {file} is not imported within {seconds:.0f} s; move what takes so long into {name}"
        )
    raise ConfigError(f"reward file {file} ends the process that imports it ({_way_out(code)}); it must only define")


def _tried(file: Path, name: str, seconds: float) -> tuple[str, int | None]:
    """What the process that imports the file said, and its exit code; None where it had to be ended."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "memdiff.rewards.python_file", str(file), name],
            env={**os.environ, WORD: str(writer)},
            pass_fds=(writer,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with said_if_slow(f"importing reward file {file}"):
                code = _wait(process, seconds)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        os.set_blocking(reader, False)
        try:
            said = os.read(reader, 2**14).decode(errors="replace")
        except BlockingIOError:
            said = ""
        return said, code
    finally:
        os.close(reader)
        os.close(writer)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code, or None where that takes longer."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def _way_out(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"


def _try() -> None:
    """In the process of its own: imports the file and says how it went."""
    word = int(os.environ.pop(WORD))
    os.set_inheritable(word, False)
    try:
        load_function(Path(sys.argv[1]), sys.argv[2])
        said = FINE
    except ConfigError as error:
        said = str(error)[: 2**12]
    os.write(word, said.encode(errors="replace"))
    os._exit(0)  # threads that the file started are not waited for


if __name__ == "__main__":
    _try()
