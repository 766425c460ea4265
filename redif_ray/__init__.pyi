from redif_ray.api import Config as Config
from redif_ray.api import ConfigError as ConfigError
from redif_ray.api import DistilledRun as DistilledRun
from redif_ray.api import Evaluation as Evaluation
from redif_ray.api import FoundSchedules as FoundSchedules
from redif_ray.api import Interrupted as Interrupted
from redif_ray.api import RoundReport as RoundReport
from redif_ray.api import SweepResult as SweepResult
from redif_ray.api import Table as Table
from redif_ray.api import UserError as UserError
from redif_ray.api import distill as distill
from redif_ray.api import evaluate_run as evaluate_run
from redif_ray.api import export_student as export_student
from redif_ray.api import find_schedule as find_schedule
from redif_ray.api import load_config as load_config
from redif_ray.api import load_student as load_student
from redif_ray.api import make_reference as make_reference
from redif_ray.api import run_sweep as run_sweep
from redif_ray.api import sample_images as sample_images
from redif_ray.api import train_judge as train_judge
from redif_ray.api import train_teacher as train_teacher

__all__: list[str]
__version__: str
