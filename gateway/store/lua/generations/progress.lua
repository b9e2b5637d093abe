-- Reply the fencing result

return progress()
