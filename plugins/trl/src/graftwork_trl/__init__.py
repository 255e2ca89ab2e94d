"""TRL's trainers behind graftwork's configuration. The entry module is ``graftwork_trl.plugin``."""
