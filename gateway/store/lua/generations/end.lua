-- Reply the fencing result

return finish_or_fail()
