"""The server's command: what must come before the imports, and `command.main`, whose bytecode is kept as a module's."""

import gc
import os
import signal
import sys

if __name__ == "__main__":
    gc.disable()  # what is imported stays: looking for garbage in it would be a fifth of the start
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # until the event loop's own

    from command import main

    sys.exit(main())
