"""The hello of a first tutorial: `mesh run services.greeting:Greeting`."""

from services.greeting.service import Greeting

__all__ = ["Greeting"]
