"""Courses of several trainings beside each other: a column for each setting, a line for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from tdaexp.papers.grokking_numbers import smooth, width_of
from tdaexp.papers.study_runs import Study
from tdaexp.report.figures import HELD_OUT, INK, SELECT, grid


def courses(groups: Mapping[str, Sequence[Study]]) -> Figure:
    """Train and test accuracy above; importance of kernel and regularisation below, each as a share of its highest."""
    with grid(2, len(groups), 3.4, 2.6, sharey=True) as (figure, axes):
        for column, (setting, runs) in enumerate(groups.items()):
            above, below = axes[:, column]
            for study in runs:
                if study.accuracy is not None:
                    for part, own in (("train", INK), ("test", HELD_OUT)):
                        above.plot(study.accuracy["step"], study.accuracy[part], color=own, linewidth=1.1, label=part)
                if study.importance is not None:
                    steps = study.importance["step"].to_numpy()
                    for part, own in (("kernel", SELECT), ("regularisation", HELD_OUT)):
                        line = smooth(study.importance[part].to_numpy(), width_of(steps))
                        below.plot(steps, line / line.max(), color=own, linewidth=1.1, label=part)
            name, *betas = setting.split()
            above.set(title=f"{name}, betas {', '.join(betas)}", ylim=(-0.02, 1.04))
            below.set_xlabel("step")
        for row, title in ((0, "accuracy"), (1, "importance")):
            axes[row, 0].set_ylabel(title)
            handles = {
                label: line for one in axes[row] for line, label in zip(*one.get_legend_handles_labels(), strict=True)
            }
            axes[row, 0].legend(handles.values(), handles.keys(), loc="upper left", fontsize=7.5)
        return figure
