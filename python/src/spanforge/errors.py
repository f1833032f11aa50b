"""What can be wrong with what a caller gives. Messages name the input and say what to do."""


class SpanforgeError(Exception):
    """The base of all below."""


class ArtifactError(SpanforgeError):
    """A folder that is no whole artifact, or one without a kernel for the job."""


class StepError(SpanforgeError):
    """Shapes, spans, pages or tensors that a kernel must not be given."""


class DriverError(SpanforgeError):
    """No CUDA driver, no such GPU, or a call that the driver refuses."""


class ProtocolError(SpanforgeError):
    """A prompt whose named parts or segments make no sense."""


class DatasetError(SpanforgeError):
    """A file that is not the data set that was asked for."""
