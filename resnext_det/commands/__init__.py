"""One command, one file: ``main(argv)``, and the only place with argparse."""
