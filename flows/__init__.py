"""Entry points: Prefect flows for schedulers and the `fantrans` command line for people."""
