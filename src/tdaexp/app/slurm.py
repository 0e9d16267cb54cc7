"""The job script that a sweep on a Slurm cluster would submit."""

from __future__ import annotations

from typing import Any

from tdaexp.runtime.errors import UserError

TARGET = "SlurmLauncher"
UNREAD = ("_target_", "submitit_folder", "max_num_timeout")  # of submitit itself, not of sbatch


def job_script(launcher: dict[str, Any], jobs: int) -> str | None:
    """The sbatch script for a job array of `jobs` tasks; None for a launcher that is not Slurm's.

    `launcher` is Hydra's node `hydra.launcher`, resolved. Errors (UserError): a value that sbatch cannot have.
    """
    if not str(launcher.get("_target_", "")).endswith(TARGET):
        return None
    from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

    wanted = {key: value for key, value in launcher.items() if key not in UNREAD and value is not None}
    try:
        # an executor asks for srun when it is made, which is not there where a script is only looked at
        parameters = SlurmExecutor._convert_parameters(SlurmExecutor.__new__(SlurmExecutor), wanted)
        script: str = _make_sbatch_string(
            command=f"python -u -m submitit.core._submit {launcher['submitit_folder']}",
            folder=launcher["submitit_folder"],
            map_count=jobs,
            **parameters,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"hydra.launcher: {' '.join(str(error).split())}") from error
    return script
