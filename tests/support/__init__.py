"""What tests share. `checked` checks every call in the package against its annotations, see pyproject.toml."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float too, as in typing
