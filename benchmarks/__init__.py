"""Models, inputs and cases that hasten is measured on."""
