"""A pretend DashScope: real enough for the official SDK, and free.

It imports nothing from the rest of `gateway`, so that a misreading of the vendor cannot pass on
both sides. `app.create_app` assembles it, `app.serve` runs it; every knob is a field of
`settings.Settings`, every misbehaviour a kind in `faults`, and every body a file in `replies/`.

People playing with it can ask for a misbehaviour in the prompt itself, with an optional delay in
seconds:

    a cat [simulate:DataInspectionFailed]
    a cat [simulate:slow 10]
    a cat [simulate:image_404]
"""
