"""The leaderboard: methods × settings × subjects, every one judged by models that are trained again."""

from tdaexp.app.leaderboard.board import Leaderboard

__all__ = ["Leaderboard"]
