"""The stages, one module each with run(settings, workdir); a stage reads only the outputs of earlier ones."""
