-- Reply the standing

return progress()
