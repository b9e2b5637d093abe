"""Pictures from clients: files until they are sent, and examined before anything is paid."""

from gateway.api.uploads.examine import Examiner
from gateway.api.uploads.spool import Pictures, Spools, Upload

__all__ = ["Examiner", "Pictures", "Spools", "Upload"]
