"""All routes, in the order in which the documents tell of them."""

from typing import Final

from services.api.routes import (
    absent,
    board,
    code,
    datastores,
    events,
    files,
    logs,
    models,
    operations,
    predictions,
    projects,
    servings,
    tokens,
    trainings,
)
from services.api.table import AnyRoute

ROUTES: Final[tuple[AnyRoute, ...]] = (
    *datastores.ROUTES,
    *files.ROUTES,
    *code.ROUTES,
    *trainings.ROUTES,
    *logs.ROUTES,
    *board.ROUTES,
    *models.ROUTES,
    *servings.ROUTES,
    *predictions.ROUTES,
    *events.ROUTES,
    *projects.ROUTES,
    *tokens.ROUTES,
    *operations.ROUTES,
    *absent.ROUTES,
)
