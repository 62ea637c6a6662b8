"""The context of a message, as an object."""

from __future__ import annotations

import copy
from typing import Any, Self


class CommonRpcContext:
    """A context: values by name, which can be read as attributes too. To be sent, they have to be plain data.

    Attributes:
        values: the dict.
    """

    def __init__(self, /, **kwargs: Any) -> None:
        self.values = kwargs

    def __getattr__(self, name: str) -> Any:
        # Not through `self.values`, which does not exist yet while a copy is being made.
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"the context has no {name!r}") from None

    def to_dict(self) -> dict[str, Any]:
        """A deep copy of the values."""
        return copy.deepcopy(self.values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The context with these values."""
        return cls(**values)

    def deepcopy(self) -> Self:
        """A copy that shares nothing with this one."""
        return self.from_dict(self.to_dict())

    def elevated(self, read_deleted: Any = None, overwrite: bool = False) -> Self:
        """A copy with ``is_admin`` set and "admin" among its ``roles``.

        Args:
            read_deleted: if it is not None, the copy's ``read_deleted``.
            overwrite: ignored, as it always was.
        """
        elevated = self.deepcopy()
        elevated.values["is_admin"] = True
        roles = elevated.values.setdefault("roles", [])
        if "admin" not in roles:
            roles.append("admin")
        if read_deleted is not None:
            elevated.values["read_deleted"] = read_deleted
        return elevated

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {', '.join(sorted(self.values)) or 'nothing'}>"  # values may be secret


RpcContext = CommonRpcContext
"""What a method gets as its context: a copy of the caller's. (The old one also held the connection for the reply.)"""
