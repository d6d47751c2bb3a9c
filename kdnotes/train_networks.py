"""Train a chapter's networks under torchrun, or what else sets WORLD_SIZE, RANK and LOCAL_RANK."""

from __future__ import annotations

import typer

from kdnotes.cli import SETTINGS, ChapterName, Given, Preset, given_texts

app = typer.Typer(**SETTINGS)


@app.command()
def main(chapter: ChapterName, p: Given = None, preset: Preset = None) -> None:
    """Train all networks of a chapter, each by all processes together.

    Every process takes an equal share of each batch, and gradients are averaged. The cache
    (KDNOTES_CACHE) and the images must be on a file system that all machines share. Killed? The
    same command goes on after the last finished epoch: the state is kept after every epoch that
    ends 60 s or more after the last one kept.

    \b
    torchrun --nproc-per-node 4 -m kdnotes.train_networks localization --preset paper \\
        -p dataset=imagefolder:/data/imagenet
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node0:29500 \\
        -m kdnotes.train_networks fidelity --preset paper -p dataset=imagefolder:/data/imagenet
    kdnotes run localization --preset paper -p dataset=imagefolder:/data/imagenet
    """
    from functools import partial

    from kdnotes.book import running
    from kdnotes.training import cache, distributed, pool

    study = running.request(running.chapter(chapter), given_texts(p, preset)).study
    networks, device = cache.with_teachers(study.networks), study.device
    folder = cache.networks_folder()
    fabric = distributed.joined(device)
    first = fabric.is_global_zero  # it speaks for all
    to_train = fabric.broadcast(cache.unusable(networks) if first else [])
    train = partial(cache.train_one, device=device, data_dir=study.data_dir)
    pool.in_turn(to_train, train, quiet=not first)
    if first:
        typer.echo(f"{len(to_train)} networks trained, {len(networks)} in {folder}")


if __name__ == "__main__":
    app()
