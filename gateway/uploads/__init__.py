"""Pictures from clients: files until they are sent, and examined before anything is paid."""

from gateway.uploads.examiner import Examiner
from gateway.uploads.spool import Pictures, Spools, Upload

__all__ = ["Examiner", "Pictures", "Spools", "Upload"]
