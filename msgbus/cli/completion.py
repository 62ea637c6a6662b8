"""``msgbus completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from msgbus.cli.options import log_options

EPILOG = """\b
Example:
  msgbus completion bash > ~/.local/share/bash-completion/completions/msgbus

\b
The file to write, for new shells:
  bash  ~/.local/share/bash-completion/completions/msgbus
        (make the folder with mkdir -p first; bash 4.4 or newer, with Debian's
        package bash-completion: without it, put eval, below, in ~/.bashrc)
  zsh   _msgbus, in a folder of $fpath
  fish  ~/.config/fish/completions/msgbus.fish

\b
For the running shell:
  bash  eval "$(msgbus completion bash)"
  zsh   eval "$(msgbus completion zsh)"
  fish  msgbus completion fish | source
"""


@click.command(epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@log_options
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL (bash, zsh or fish) complete commands and options when Tab is pressed."""
    cls = get_completion_class(shell)
    assert cls is not None
    script = cls(ctx.find_root().command, {}, "msgbus", "_MSGBUS_COMPLETE")
    click.echo(script.source(), nl=False)
    if shell == "zsh":  # As a file in $fpath it would, without this, complete nothing the second time.
        click.echo(f"compdef {script.func_name} msgbus")
