// Camera and microphone: one recording at a time, also while the browser asks and opens the device.

const state = { recorder: null, isOn: false };

export const isRecording = () => state.isOn;

async function toggle(button, buttons, tell, attach) {
  if (state.recorder) {
    state.recorder.stop();
    return;
  }
  const kind = button.dataset.record;
  const label = button.textContent;
  const release = () => {
    state.isOn = false;
    for (const each of buttons) each.disabled = false;
  };
  state.isOn = true;
  for (const each of buttons) each.disabled = true;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: kind === "video" });
  } catch {
    tell("The browser gave no access to it; allow it, or attach a file.");
    release();
    return;
  }
  const parts = [];
  const recorder = state.recorder = new MediaRecorder(stream);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    for (const track of stream.getTracks()) track.stop();
    state.recorder = null;
    button.textContent = label;
    release();
    tell("");
    // "audio/webm;codecs=opus"; some browsers call a sound video/webm
    const format = recorder.mimeType.split(";")[0].split("/")[1] || "webm";
    attach(new File(parts, `recording.${format}`, { type: `${kind}/${format}` }));
  });
  recorder.start();
  button.textContent = "Stop recording";
  button.disabled = false;
  tell("Recording …");
}

export function offerRecording(buttons, tell, attach) {
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) return;
  for (const button of buttons) {
    button.hidden = false;
    button.addEventListener("click", () => toggle(button, buttons, tell, attach));
  }
}
