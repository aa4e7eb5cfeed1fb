"""Every exception that hasten raises on purpose.

Each message says what was wrong, what was received and what to do about it.

    HastenError
    ├── ModelError                  the source is missing, unreadable or not a valid model
    │   └── UnsupportedModelError   valid, but nothing here can run some part of it
    ├── InputError                  arrays given to a run do not fit the model
    ├── ArtifactError               a .hasten file is damaged, too new or for another processor
    ├── TargetError                 an unknown or unusable instruction set was asked for
    ├── ToolchainError              no C compiler, or the compiler failed
    ├── MissingDependencyError      an optional package is needed and not installed
    ├── TuningError                 the results of tuning are damaged or cannot be kept
    ├── DataError                   samples for calibration and accuracy are unreadable or do not fit
    │   └── CalibrationError        they fit, but give what is no number somewhere in the model
    ├── MetricError                 a metric has no value on some answers
    ├── EngineError                 another engine, run to compare with, failed
    └── OptionError                 an argument or command-line option has no meaning here

    HostOperatorWarning             some operators run on the host: correct, but slow
"""


class HastenError(Exception):
    """Base of all errors that hasten raises on purpose."""


class ModelError(HastenError):
    """The source is missing, unreadable or not a valid model."""


class UnsupportedModelError(ModelError):
    """The model is valid, but nothing here can run some part of it."""


class InputError(HastenError):
    """Arrays given to a run do not fit the model."""


class ArtifactError(HastenError):
    """A .hasten file is damaged, too new or for another processor."""


class TargetError(HastenError):
    """An unknown or unusable instruction set was asked for."""


class ToolchainError(HastenError):
    """No C compiler was found, or the compiler failed."""


class MissingDependencyError(HastenError):
    """An optional package is needed and not installed."""


class TuningError(HastenError):
    """The results of tuning are damaged, of a newer hasten, or cannot be kept."""


class DataError(HastenError):
    """Samples for calibration and accuracy are unreadable, too few, or do not fit the model."""


class CalibrationError(DataError):
    """Samples fit the model, but make one of its values NaN or infinite."""


class MetricError(HastenError):
    """A metric has no value on some answers: NaN, shapes that do not fit, a function that raised."""


class EngineError(HastenError):
    """Another engine, run to compare with, failed."""


class OptionError(HastenError):
    """An argument or command-line option has no meaning here."""


class HostOperatorWarning(UserWarning):
    """Some operators run on the host, through ONNX's reference evaluator: correct, but slow."""
