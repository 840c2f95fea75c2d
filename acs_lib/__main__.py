"""`acs` and `python -m acs_lib`: the command line. While it is loaded, Ctrl-C ends it without a word."""

import signal


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script's background job ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `cli.report_user_errors`
    from acs_lib.cli import app  # late: it takes a moment

    app(prog_name="acs")


if __name__ == "__main__":
    main()
