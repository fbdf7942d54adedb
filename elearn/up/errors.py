"""What can be wrong with an embedded platform; each error is one line that says what to do.

ElearnError
└── UpError
    ├── HomeError           ELEARN_HOME can't be used: unwritable, full, somebody else's
    ├── AlreadyRunningError another `elearn up` owns this home
    ├── PortTakenError      the port asked for belongs to another program
    ├── MissingPartError    a wheel of the `embedded` extra is not installed
    ├── AccountError        PostgreSQL can't be run by any account available here
    └── StartError          a process did not become ready
"""

from shared.errors import ElearnError


class UpError(ElearnError):
    title = "elearn up"
    type = "up"


class HomeError(UpError):
    pass


class AlreadyRunningError(UpError):
    pass


class PortTakenError(UpError):
    pass


class MissingPartError(UpError):
    pass


class AccountError(UpError):
    pass


class StartError(UpError):
    pass
