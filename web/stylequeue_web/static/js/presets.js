// Choosing a preset writes its values into the fields that it concerns.

export function followPresets(form, presets) {
  const shown = form.elements.shown_preset;
  for (const radio of form.querySelectorAll('input[name="preset"]')) {
    radio.addEventListener("change", () => {
      const before = presets[shown.value] ?? {};
      const after = presets[radio.value];
      for (const [name, value] of Object.entries(after)) {
        // What the two presets have in common keeps the visitor's own value.
        if (JSON.stringify(value) !== JSON.stringify(before[name])) write(form, name, value);
      }
      shown.value = radio.value;
    });
  }
}

function write(form, name, value) {
  if (name === "preset") return;
  if (Array.isArray(value)) {
    for (const box of form.querySelectorAll(`input[name="${name}"]`)) box.checked = value.includes(box.value);
  } else if (typeof value === "boolean") {
    form.elements[name].checked = value;
  } else {
    form.elements[name].value = value ?? "";
  }
}
