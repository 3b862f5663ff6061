"""`turbo-vaed node …`: this machine as a node of a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="This machine as a node of a Ray cluster.")


@app.command("labels")
def label_node() -> None:
    """This EC2 machine's type, market and zone, by which its price is found.

    For the start of a node: ray start --labels "$(turbo-vaed node labels)" …
    """
    from turbo_vaed.cluster.metadata import labels

    print(labels())


@app.command("watch")
def watch_node(
    poll_seconds: Annotated[float, typer.Option(min=1, help="between two polls of EC2")] = 5.0,
    rebalance_seconds: Annotated[
        float, typer.Option(min=0, help="what a rebalance recommendation leaves to finish")
    ] = 600.0,
    node_id: Annotated[
        str | None, typer.Option(help="Ray's hex id of the node; else the one on this machine")
    ] = None,
) -> None:
    """Drain this machine's Ray node when EC2 says that the machine will be taken away."""
    from turbo_vaed.cluster.drain import watch

    watch(poll_seconds=poll_seconds, rebalance_seconds=rebalance_seconds, node_id=node_id)


@app.command("join")
def join_cluster(
    head: Annotated[str, typer.Option(help="address of Ray's head, HOST:PORT")],
    token_secret: Annotated[str, typer.Option(help="name of the secret with Ray's token")],
    node_type: Annotated[str, typer.Option("--type", help="name of the autoscaler's node type")],
) -> None:
    """Join a cluster as a worker, and drain when EC2 takes this machine; ends with its Ray.

    A worker's user data calls this at boot, and ends the machine afterwards.
    """
    from turbo_vaed.cluster.machines import join

    raise typer.Exit(join(head, token_secret=token_secret, node_type=node_type))
