"""Running a recipe.

program.py        the command line: words to options, memory checked, then one run or two
options.py        `RunOptions`: what all recipes share, and the data and optimizers that it stands for
recipe.py         one run: train, save, measure, report
beside_null.py    the run again with the null in the second model's place, and what is exclusive by it
sweep.py          many runs of one recipe on one harvest, their table and figure
resuming.py       a run that was cut short goes on
"""

from crosscode.run.options import MLP_INPUTS, MLP_OUTPUTS, RESIDUAL, RunOptions
from crosscode.run.program import main
from crosscode.run.sweep import Sweep

__all__ = ["MLP_INPUTS", "MLP_OUTPUTS", "RESIDUAL", "RunOptions", "Sweep", "main"]
