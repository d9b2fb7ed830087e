"""Recipe section `method`: one section an algorithm. No torch."""

from typing import Annotated

from pydantic import Field

from memdiff.methods.reinforce_config import ReinforceConfig
from memdiff.methods.reward_gradient_config import AlignPropConfig, DraftConfig, ReflConfig
from memdiff.methods.sft_pg_config import SftPgConfig

MethodConfig = Annotated[
    ReinforceConfig | DraftConfig | AlignPropConfig | ReflConfig | SftPgConfig, Field(discriminator="kind")
]
