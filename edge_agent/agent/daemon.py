"""What `edge-agent run` does, without the command line: the daemon's process never loads that."""

import faulthandler
import sys
import traceback
from pathlib import Path

from edge_agent.base import log
from edge_agent.base.errors import PassingError, SettingsError
from edge_agent.base.outlet import STDERR, standard_error
from edge_agent.settings import load as settings

EXIT_AGAIN, EXIT_SETTINGS = 1, 2


def main(config: Path | None) -> int:
    """Run the agent with a settings file; return the exit status: 0 after an orderly stop, 2 for unusable settings.

    1: it is to be started again.
    """
    from edge_agent.agent.lifecycle import Agent  # noqa: PLC0415 - settings are judged before the rest is loaded

    with standard_error(lost=lambda lines: log.get_logger().warning("log.lost", lines=lines)):
        # Where each thread stands, when the watchdog or a native fault ends us; names only.
        faulthandler.enable(file=STDERR)
        try:
            loaded = settings.load(config)
            log.configure(format=loaded.log.format, level=loaded.log.level)
            return Agent(loaded).run()
        except PassingError as error:  # of the settings' own file: the service manager starts us again
            sys.stderr.write(f"edge-agent: the settings cannot be read:\n{error}\n")
            return EXIT_AGAIN
        except SettingsError as error:
            sys.stderr.write(f"edge-agent: the settings cannot be used:\n{error}\n")
            return EXIT_SETTINGS
        except Exception:  # noqa: BLE001 - told here, where it waits for no reader
            traceback.print_exc()
            return EXIT_AGAIN
