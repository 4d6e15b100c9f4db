"""The curves of a training, as TensorBoard reads them."""

from pathlib import Path

from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.loop import TrainReport

FOLDER = "tensorboard"


class TensorBoardLog:
    """Writes every report to event files in `out/tensorboard`.

    Raises:
        TrainingError: the package tensorboardX is missing.
    """

    def __init__(self, out: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as exc:
            raise TrainingError(
                "A TensorBoard log needs the package tensorboardX: pip install tensorboardX."
            ) from exc
        self._writer_of = SummaryWriter
        self._folder = out / FOLDER
        self._writer: SummaryWriter | None = None

    def write(self, report: TrainReport) -> None:
        """Add the scalars of one report at its step."""
        if self._writer is None:
            # After an interruption steps come again; from the first of them the old are hidden.
            self._writer = self._writer_of(str(self._folder), purge_step=report.step)
        scalars = {
            f"{report.stage}/loss": report.loss,
            "optimizer/lr": report.lr,
            "optimizer/grad_norm": report.grad_norm,
            "speed/tokens_per_second": report.tokens_per_second,
        }
        if report.heldout_loss is not None:
            scalars["heldout/loss"] = report.heldout_loss
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
