"""The command line. Nothing heavy is imported before a recipe is known to be right."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from memdiff import __version__, library
from memdiff.errors import ConfigError
from memdiff.recipe.shipped import completions
from memdiff.runtime.announce import on_stderr, said_if_slow
from memdiff.runtime.cuda_allocator import use_expandable_segments
from memdiff.runtime.exit_codes import guarded, written_out
from memdiff.runtime.from_here import from_here, shell_word

app = typer.Typer(
    name="memdiff",
    help="Reward fine-tuning of diffusion models on the GPUs people have.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"memdiff {__version__}")
        raise typer.Exit


@app.callback()
def _ranks(
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and stop.")
    ] = False,
) -> None:
    """The deepspeed launcher puts --local_rank=N first, and names devices of its own."""
    if local_rank is not None:
        from memdiff.training.launcher import restore_visible_devices

        os.environ.setdefault("LOCAL_RANK", str(local_rank))
        restore_visible_devices()


@app.command(epilog="Example: memdiff train launch/recipes/digits_reinforce.yaml --gpus 2 --out runs/digits")
def train(
    recipe: Annotated[
        Path, typer.Argument(help="A YAML recipe, or the name of one that ships.", autocompletion=completions)
    ],
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<recipe>.")] = None,
    gpus: Annotated[int | None, typer.Option(help="Ranks. Default: every GPU, or one CPU rank.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Overrides a key: --set run.rounds=5")] = None,
    resume: Annotated[str, typer.Option(help="auto, must or never (which moves an old run aside).")] = "auto",
    resume_from: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|hf://REPO", help="A run folder begun elsewhere, copied to --out to go on there."),
    ] = None,
    ds_config: Annotated[Path | None, typer.Option(help="A DeepSpeed JSON to start from.")] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="Hosts to run on, a line each: NAME slots=N. ssh goes to each of them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")] = False,
) -> None:
    """Fine-tune a model on a reward. The same command again goes on where it stopped.

    Under the deepspeed launcher this process is one rank; otherwise it starts the launcher itself.
    """
    from memdiff.processes.rank import begin_rank, under_launcher
    from memdiff.processes.stops import Stops, exit_at_once

    if under_launcher():
        stops, heartbeat = begin_rank()  # before imports that take their time
        with stops.leaving():
            from memdiff.training.command import checked_recipe
            from memdiff.training.one_rank import train_rank
            from memdiff.training.run_folder import known_resume

            how = known_resume(resume)
            checked, folder = checked_recipe(recipe, out, set_ or ())
        raise typer.Exit(train_rank(checked, folder.path, stops, heartbeat, resume=how, ds_config_file=ds_config))
    stops = Stops(exit_at_once)
    stops.listen()
    from memdiff.training.command import train_recipe

    code = train_recipe(
        recipe, out, set_ or (), stops,
        gpus=gpus, hostfile=hostfile, resume=resume, resume_from=resume_from, ds_config=ds_config, dry_run=dry_run,
    )  # fmt: skip
    raise typer.Exit(code)


@app.command(epilog="Example: memdiff sample runs/digits --num-images 64 --out samples")
def sample(
    source: Annotated[str, typer.Argument(help="A run folder, pipeline folder, hub id, digits or digits_text.")],
    num_images: Annotated[int, typer.Option(min=1)] = 16,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images denoised at once.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the run's own, or 50.")] = None,
    eta: Annotated[float | None, typer.Option(min=0, max=1, help="Default: the run's own, or 1.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Default: the run's own, or 7.5; 0 to 1 is none.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The text of all images. Default: the run's own texts.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of texts, such as .txt or .csv: image i has number i mod P of P.")
    ] = None,
    lora_scale: Annotated[float | None, typer.Option(help="Multiplies dW. 0: the base, 1: as trained.")] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR=W",
            help="An adapter with a weight; again for more. A run, a PEFT folder, a LoRA of diffusers or kohya. SOURCE "
            "then gives its base alone.",
        ),
    ] = None,
    adapter_steps: Annotated[
        str | None, typer.Option(metavar="START:END", help="Adapters act in these steps. Default: as trained.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    height: Annotated[int | None, typer.Option(help="Pixels. Default: the run's own, or the model's.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: the run's own, or the model's.")] = None,
    config: Annotated[
        str | None, typer.Option(help="For a model in one file: a folder or hub id for configs and tokenizer.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp16, bf16 or fp32.")] = "auto",
    best: Annotated[bool, typer.Option("--best", help="The best evaluated weights of a run, not the last.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Default: samples in the run folder, or ./samples; samples_2 where that holds others."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Processes. Default: every GPU, or one on a CPU.")] = None,
) -> None:
    """Exactly N images, a grid and a JSON of the settings.

    Image i has the same noise and the same prompt on any number of GPUs.
    """
    samples = library.sample(
        source, best=best, num_images=num_images, batch_size=batch_size, steps=steps, eta=eta, guidance=guidance,
        seed=seed, prompt=prompt, prompts=prompts, lora_scale=lora_scale, mix=mix or (), adapter_steps=adapter_steps,
        precision=precision, out=out, height=height, width=width, config=config, gpus=gpus,
    )  # fmt: skip
    typer.echo(f"open {shell_word(samples.grid)}" if sys.stdout.isatty() else from_here(str(samples.folder)))


@app.command(epilog="Example: memdiff score samples --reward aesthetic --reward jpeg:quality=90 --json scores.json")
def score(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders or globs. Of a folder of memdiff sample: its images.")
    ],
    reward: Annotated[
        list[str], typer.Option(help="KIND or KIND:key=value,..., keys as in a recipe; give it again for more.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="One for all, or one for each, in order. Default: as sampled.")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Also show the scores of each image.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all scores here.")] = None,
) -> None:
    """Score images that lie on disk: mean and std of each reward, each image's scores where asked for."""
    from memdiff.runtime.image_files import find_images, prompts_beside
    from memdiff.scoring.request import given_parts

    files = find_images(images)
    texts = prompt or prompts_beside(files)
    parts = given_parts(reward, with_prompts=all(texts))

    with said_if_slow(library.LOADING, on_stderr):
        from memdiff.scoring.score import score_files

    score_files(files, parts, texts, json_file=json_file, each=rows)


@app.command("eval", epilog="Example: memdiff eval before=digits after=runs/digits --num-images 400 --reward digits")
def evaluate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SOURCE...",
            help="Runs, pipeline folders or files, hub ids, digits, digits_text; or folders, globs or files of images.",
        ),
    ],
    num_images: Annotated[
        int | None, typer.Option(min=1, help="Of each. Default: one a prompt of the set, all that lie there, or 64.")
    ] = None,
    reward: Annotated[list[str] | None, typer.Option(help="KIND or KIND:key=value,..., as for score; again.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The text of all images.")] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="DrawBench .csv, HPDv2 .json, PartiPrompts .tsv, GenEval .jsonl, or texts; again for more."),
    ] = None,
    real: Annotated[str | None, typer.Option(help="A folder of real images, for FID and KID.")] = None,
    inception: Annotated[
        str | None, typer.Option(help="pt_inception-2015-12-05-6726825d.pth, its folder, or a hub id that holds it.")
    ] = None,
    resize: Annotated[str, typer.Option(help="To Inception's 299 x 299: as pytorch-fid, or as clean-fid.")] = (
        "pytorch-fid"
    ),
    size: Annotated[int | None, typer.Option(min=1, help="First bring all to N x N, for FID, KID, diversity.")] = None,
    diversity: Annotated[
        list[str] | None, typer.Option(help="Mean pairwise distance in features of clip, inception or judge; again.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="The CLIP of --diversity clip: a folder or hub id.")] = None,
    digits: Annotated[
        bool | None, typer.Option("--digits/--no-digits", help="The digit judge. Default: for the embedded models.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="OWL-ViT or OWLv2 (folder or hub id) for GenEval's object checks.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images denoised at once.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: each run's own, or 50.")] = None,
    eta: Annotated[float | None, typer.Option(min=0, max=1, help="Default: each run's own, or 1.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Default: each run's own, or 7.5.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    height: Annotated[int | None, typer.Option(help="Pixels. Default: each run's own, or model's.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: each run's own, or model's.")] = None,
    config: Annotated[
        str | None, typer.Option(help="For models in one file: a folder or hub id for configs and tokenizer.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp16, bf16 or fp32.")] = "auto",
    best: Annotated[bool, typer.Option("--best", help="The best evaluated weights of runs, not the last.")] = False,
    out: Annotated[Path, typer.Option(help="eval.json, eval.html, eval.png and the samples.")] = Path("evaluation"),
    gpus: Annotated[int | None, typer.Option(min=1, help="Processes that sample. Default: every GPU.")] = None,
) -> None:
    """Compare sources side by side, from the same noise and texts: rewards, FID, KID, diversity, with intervals."""
    from memdiff.evaluation.request import CLIP, INCEPTION, Options, prepare

    options = Options(
        sources, num_images=num_images, prompt=prompt, prompts=prompts or (), rewards=reward or (), real=real,
        inception=inception or INCEPTION, resize=resize, digits=digits, diversity=diversity or (), clip=clip or CLIP,
        detector=detector, size=size, batch_size=batch_size, steps=steps, eta=eta, guidance=guidance, seed=seed,
        height=height, width=width, config=config, precision=precision, best=best, out=out,
    )  # fmt: skip
    with said_if_slow(library.LOADING, on_stderr):
        prepared = prepare(options)
        from memdiff.evaluation.show import evaluate_and_show, last_lines

    folder = evaluate_and_show(prepared, gpus)
    typer.echo("\n".join(last_lines(folder, prepared, terminal=sys.stdout.isatty())))


@app.command(epilog="Example: memdiff plan launch/recipes/celebahq_reinforce.yaml --gpu t4 --gpus 4")
def plan(
    recipe: Annotated[
        Path, typer.Argument(help="A YAML recipe, or the name of one that ships.", autocompletion=completions)
    ],
    gpu: Annotated[str | None, typer.Option(help="The card: t4 (default), a10, l4, v100, a100, h100, ...")] = None,
    budget_gib: Annotated[float | None, typer.Option(min=0.01, help="Instead: what the allocator may hold.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Cards, one rank each.")] = 1,
    host_gib: Annotated[float | None, typer.Option(min=0.01, help="The machine's memory. Default: this one's.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Overrides a key, as for train.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON on stdout.")] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="The chosen section `memory` of a recipe on stdout.")] = False,
) -> None:
    """Before a run: its peak memory on a card, the fastest setting that fits, and what every knob saves and costs.

    Runs the recipe's own algorithm without data; nothing is downloaded for models that are written down.
    """
    from memdiff.planner.command import plan_recipe

    said = plan_recipe(
        recipe, set_ or [], gpu=gpu, budget_gib=budget_gib, ranks=gpus, host_gib=host_gib, as_json=as_json,
        as_yaml=as_yaml,
    )  # fmt: skip
    if said is not None:
        typer.echo(said)


@app.command(epilog="Example: memdiff report runs/digits runs/digits_ddpo --out comparison.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several to put side by side.")],
    out: Annotated[
        Path | None, typer.Option(help="Default: report.html in the run folder; of several ./comparison.html.")
    ] = None,
) -> None:
    """Write a page about a run, or about several side by side: one file, opens from file://."""
    with said_if_slow("writing the page", on_stderr):
        from memdiff.reporting.html import write_comparison, write_report

        page = write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs, out)
    typer.echo(f"open {shell_word(page)}" if sys.stdout.isatty() else from_here(str(page)))


@app.command(epilog="Example: memdiff push runs/digits you/even-digits --yes")
def push(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repo: Annotated[str, typer.Argument(help="The model repository: owner/name.")],
    best: Annotated[bool, typer.Option("--best", help="The best evaluated weights, not the last.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A new repository that all can read.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else the files are listed and nothing is sent.")] = False,
) -> None:
    """Put a run's model and its card on the hub. Says what would go there, and goes with --yes."""
    from memdiff.publishing.push import prepare_upload
    from memdiff.publishing.push import push as push_files

    upload = prepare_upload(run, repo, best=best, public=public)
    typer.echo("\n".join(upload.lines()))
    typer.echo(push_files(upload) if yes else "nothing was sent; --yes sends it")


@app.command(epilog="Example: memdiff doctor")
def doctor() -> None:
    """Look at versions, devices, precisions, compiler, operators, hub and disk, and say what to do."""
    from memdiff.doctor.examine import examine, show

    raise typer.Exit(show(examine()))


@app.command(epilog="Example: memdiff bench --out bench")
def bench(
    out: Annotated[Path, typer.Option(help="bench.md, bench.json and the parts' logs.")] = Path("bench"),
    gpus: Annotated[int | None, typer.Option(min=1, help="The most ranks. Default: every GPU, at most 4.")] = None,
) -> None:
    """Measure this machine for a report: doctor, plans beside peaks and seconds, one rank beside several.

    Takes minutes; Ctrl-C leaves what was measured. Prints one block of text to paste into an issue.
    """
    from memdiff.bench.command import bench as bench_here

    raise typer.Exit(bench_here(out, gpus))


@app.command(epilog="Example: memdiff init --model digits --reward digits:digits=[7] --out sevens.yaml")
def init(
    model: Annotated[str | None, typer.Option(help="digits, digits_text, a pipeline folder or a hub id.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="KIND or KIND:key=value,..., as for score; again for more.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to make images from; again for more.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="ddpm, stable_diffusion or sdxl. Default: what the model says.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="reinforce, draft, alignprop or refl. Default: by the reward's gradient.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    gpu: Annotated[
        str | None, typer.Option(help="The card that the next command plans for. Default: t4, none for what ships.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="And how many of them.")] = 1,
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe with comments, to be planned, changed and trained. Asks for what is not given."""
    from memdiff.models.config import EMBEDDED

    asks = sys.stdin.isatty()
    asks_for_card = asks and gpu is None and (model is None or not reward)
    if model is None:
        model = typer.prompt("model (digits, digits_text, a folder or a hub id)", default="digits") if asks else None
    if not reward:
        reward = [typer.prompt("reward, such as aesthetic, jpeg or python:file=mine.py")] if asks else None
    if asks_for_card and model not in EMBEDDED:
        gpu = typer.prompt("card to plan for", default="t4")
    if model is None or not reward:
        raise ConfigError("init needs --model and --reward, such as --model digits --reward digits:digits=[7]")
    from memdiff.recipe.init import Wish, kind_of, next_commands, write_recipe
    from memdiff.scoring.request import given_parts

    if not prompt and asks and (model == "digits_text" or kind_of(model, kind) in ("stable_diffusion", "sdxl")):
        prompt = [typer.prompt("prompt")]
    parts = list(given_parts(reward, with_prompts=True).values())
    raw = [part.model_dump(mode="json", exclude_unset=True) for part in parts]
    write_recipe(Wish(model, raw, prompt or (), kind, method, rounds), parts, out)
    typer.echo("\n".join([f"wrote {out}. Next:", *next_commands(out, model, gpu, gpus)]))


@app.command(epilog="Example: memdiff recipes")
def recipes(
    show: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print this one, to copy and change.", autocompletion=completions)
    ] = None,
) -> None:
    """The recipes that ship. Each name stands for its file: memdiff plan sd15_draft_t4."""
    from memdiff.recipe.reading import recipe_text
    from memdiff.recipe.shipped import find_recipe, headline, shipped_recipes

    if show is not None:
        typer.echo(written_out(recipe_text(find_recipe(Path(show))).rstrip()))
        return
    shipped = shipped_recipes()
    for name, file in shipped.items():
        typer.echo(f"{name:<{max(map(len, shipped))}}  {headline(file)}")


@app.command(epilog="Example: memdiff schema > recipe.schema.json")
def schema() -> None:
    """The JSON Schema of a recipe, on stdout."""
    from memdiff.recipe.schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits."""
    use_expandable_segments()
    command: Any = typer.main.get_command(app)
    words = list(arguments) if arguments is not None else None
    guarded(lambda: command(args=words, prog_name="memdiff", standalone_mode=False), words or sys.argv[1:])
