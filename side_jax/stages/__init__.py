"""The seven stages; each has run(config, workdir), and reads only what earlier stages wrote."""
