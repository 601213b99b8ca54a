"""For all tests: Ctrl-C is heeded. A suite that was started in the background inherits an ignored SIGINT, which the
programs that the tests start (and interrupt) would inherit in turn."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
