// The page of the service: sends one image per request and shows the answers. Everything is lost with the tab.
// Names of files and classes come from strangers, so they are written with textContent only.

const PREVIEW_PX = 480; // longer side of the photo that the page keeps; our own choice
const MAX_SHOTS = 200; // older results leave the gallery: each needs about 0.2 MB; our own choice
const MAX_CLASSES = 200; // listed by name; our own choice
const TIMEOUT_MS = 180_000; // for one photo, also over a slow connection; our own choice
const MB = 2 ** 20; // as the service counts
const SMALL_PX = 64; // crops up to this size are shown as pixels

// Names of image formats in MIME types that differ from those of the service.
const FORMATS = { pjpeg: "jpeg", jpg: "jpeg", apng: "png", "x-ms-bmp": "bmp", "x-bmp": "bmp", heic: "heif" };
// Codes for answers of a proxy, which have none.
const CODES = { 401: "unauthorized", 413: "body_too_large", 429: "busy", 500: "internal_error", 503: "busy" };
// After these the next photo would fail as well.
const STOPS = ["unreachable", "unauthorized", "not_ready", "not_found"];
const WORKS_LATER = [...STOPS, "busy", "timeout", "stopped", "internal_error"];
const MESSAGES = {
  empty_file: "The file is empty. Choose another copy of it.",
  unreadable: "The file cannot be read. It may be a folder, or it was moved: choose the photo again.",
  no_file: "That was not a photo: a link or a text cannot be read. Save the image first, then choose the file.",
  body_too_large: "The file is too large: the service reads up to {mb} MB. Save the photo smaller.",
  too_many_pixels: "The photo is too large: the service reads up to {pixels} million pixels. Save the photo smaller.",
  unsupported_image: "This is not an image that the service can read ({formats}). Save it as JPEG, and choose that.",
  corrupt_image: "The image is damaged or incomplete. Copy or save it again.",
  unauthorized: "The service asks for a key. Ask the person who runs it, then try again.",
  internal_error: "The service has made an error. Try again; if that does not help, ask the person who runs it.",
  not_found: "The service no longer has this model. Try again with another one.",
  timeout: "Sending the photo took too long. Check your connection, then try again.",
  busy: "The service has too much to do. Wait some seconds, then try again.",
  not_ready: "The model cannot be used at present. Try again in a minute, or ask the person who runs the service.",
  unreachable: "The service cannot be reached. Check your connection and that the service runs, then try again.",
  stopped: "Stopped before an answer came.",
  unknown: "The service did not accept this. Reload the page and try again.",
};

const element = (id) => document.getElementById(id);
const make = (tag, text = "", className = "") =>
  Object.assign(document.createElement(tag), { textContent: text, className });

let limits = null; // of GET /models
let isCurrent = false; // whether models and limits need not be read again
let key = "";
let sending = null; // the XMLHttpRequest of the photo that is sent
let isRunning = false;
const queue = []; // files to send
const failed = []; // files that "Try again" sends

/** What kept a photo from being classified: a code of MESSAGES, and what the service says. */
class Problem extends Error {
  constructor(code, said = "") {
    super(said);
    this.code = code;
  }
}

/** Send a request; resolve to the JSON of the answer, or reject with a Problem. */
function send(method, path, body = null) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest(); // fetch does not report how much is sent
    xhr.open(method, path);
    xhr.timeout = TIMEOUT_MS;
    xhr.responseType = "json"; // null for the HTML of a proxy
    if (key) xhr.setRequestHeader("Authorization", `Bearer ${key}`);
    xhr.upload.onprogress = ({ loaded, total }) => showSent(loaded / total);
    xhr.onload = () => {
      const answer = xhr.response;
      const fallback = CODES[xhr.status] ?? (xhr.status > 500 ? "unreachable" : "unknown");
      if (xhr.status === 200 && answer) resolve(answer);
      else reject(new Problem(answer?.error?.code ?? fallback, answer?.error?.message));
    };
    xhr.onerror = () => reject(new Problem("unreachable"));
    xhr.ontimeout = () => reject(new Problem("timeout"));
    xhr.onabort = () => reject(new Problem("stopped"));
    sending = xhr;
    xhr.send(body);
  });
}

/** Send a request, and ask for the key as often as the service refuses it. */
async function sendWithKey(...request) {
  for (;;) {
    try {
      return await send(...request);
    } catch (problem) {
      if (problem.code !== "unauthorized") throw problem;
      key = await askForKey();
    }
  }
}

/** Resolve to the key that is typed; reject if the dialog is closed without one. */
function askForKey() {
  const dialog = element("asking");
  element("refused").textContent = key ? "The service refused this key." : "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => {
      element("key").value = "";
      if (dialog.returnValue) resolve(dialog.returnValue);
      else reject(new Problem("unauthorized"));
    };
  });
}

/** Read the models and the limits of the service. */
async function start() {
  const answer = await sendWithKey("GET", "models");
  const formats = answer.limits.formats.join(", ");
  const size = `${answer.limits.max_body_mb} MB and ${answer.limits.max_pixels / 1e6} million pixels`;
  element("limits").textContent = `${formats}; up to ${size} each.`;
  // Without HEIF in the list, phones convert their photos to JPEG.
  element("files").accept = answer.limits.formats.map((format) => `image/${format.toLowerCase()}`).join();
  fillModels(answer.models);
  limits = answer.limits;
  isCurrent = true;
}

function startAndReport() {
  showErrors([]);
  start().catch((problem) => showErrors([[null, problem]]));
}

/** Offer each model, and each of its versions if there are several. */
function fillModels(models) {
  const select = element("model");
  const chosen = select.value;
  const add = (text, path, versions) => {
    const option = new Option(text, `${path}/predict`);
    option.disabled = !versions.some((version) => version.ready);
    option.classes = (versions.find((version) => version.ready) ?? versions[0]).class_names ?? [];
    option.reason = versions.find((version) => version.reason)?.reason;
    select.append(option);
  };
  select.replaceChildren();
  for (const { name, versions } of [...models].sort((a, b) => b.default - a.default)) {
    const path = `models/${encodeURIComponent(name)}`;
    add(versions.length > 1 ? `${name} (any version)` : name, path, versions);
    for (const version of versions.length > 1 ? versions : [])
      add(`${name} ${version.version}`, `${path}/versions/${encodeURIComponent(version.version)}`, [version]);
  }
  const usable = [...select.options].filter((option) => !option.disabled);
  if (usable.length === 0) throw new Problem("not_ready", select.options[0]?.reason);
  (usable.find((option) => option.value === chosen) ?? usable[0]).selected = true;
  element("choice").hidden = select.options.length < 2;
  showClasses();
}

function showClasses() {
  const { classes } = element("model").selectedOptions[0];
  const more = classes.length > MAX_CLASSES ? `, and ${classes.length - MAX_CLASSES} more` : "";
  // In isolates, so that the direction of a name, as in Arabic, does not change the order of the others.
  const names = classes.slice(0, MAX_CLASSES).map((name) => `\u2068${name}\u2069`).join(", ");
  element("known").textContent = `The network knows ${classes.length} classes: ${names}${more}.`;
}

/** Send files one after the other; those that come meanwhile are sent too. */
async function classifyAll(files) {
  queue.push(...files);
  if (isRunning || queue.length === 0) return;
  isRunning = true;
  failed.length = 0;
  const problems = [];
  let count = 0;
  showErrors([]);
  markShown(null);
  try {
    for (let number = 1; queue.length > 0; number += 1) {
      const file = queue.shift();
      showStep(file, number, number + queue.length);
      try {
        addShot(await classify(file), count === 0);
        count += 1;
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        problems.push([file, problem]);
        if (WORKS_LATER.includes(problem.code)) failed.push(file);
        if (STOPS.includes(problem.code)) {
          failed.push(...queue.splice(0));
          isCurrent = false;
        }
      }
    }
  } finally {
    isRunning = false;
    element("progress").hidden = true;
    showErrors(problems);
    if (count > 1) element("status").textContent = `${count} photos are listed under Photos of this visit.`;
  }
}

/** Check a file against the limits of the service and send it; return what the gallery keeps. */
async function classify(file) {
  if (!isCurrent) await start();
  await checkFile(file);
  const preview = await readPreview(file);
  const answer = await sendWithKey("POST", `${element("model").value}?top_k=5&crop=true`, file);
  return { name: file.name, preview: preview ?? answer.crop, answer };
}

/** Throw a Problem if the service would refuse a file for its size or type, or if it cannot be read. */
async function checkFile(file) {
  if (file.size > limits.max_body_mb * MB) throw new Problem("body_too_large");
  const format = file.type.replace("image/", "");
  const isKnown = limits.formats.includes((FORMATS[format] ?? format).toUpperCase());
  if (file.type && !isKnown) throw new Problem("unsupported_image");
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem("unreadable");
  }
  if (file.size === 0) throw new Problem("empty_file");
}

/** Return a small copy of a photo as data URL, or null where the browser cannot decode its format. */
async function readPreview(file) {
  const image = new Image();
  const url = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject, src: url }));
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  if (width * height > limits.max_pixels) throw new Problem("too_many_pixels"); // before it is decoded
  const scale = Math.min(1, PREVIEW_PX / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, width * scale);
  canvas.height = Math.max(1, height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind transparency, as in the service
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.85);
}

function percent(probability) {
  if (probability >= 0.9995) return "over 99.9%";
  return probability < 0.0005 ? "under 0.1%" : `${(100 * probability).toFixed(1)}%`;
}

function showStep(file, number, total) {
  const text = `Classifying ${file.name}${total > 1 ? ` (${number} of ${total})` : ""} ...`;
  element("step").textContent = text;
  if (number === 1) element("status").textContent = text;
  element("progress").hidden = false;
  showSent(0);
}

/** Show how much of a photo is sent, 0 to 1; at 1 the service works on it, for an unknown time. */
function showSent(fraction) {
  if (fraction < 1) element("bar").value = fraction;
  else element("bar").removeAttribute("value");
}

/** Return the message of a code in plain words. */
function explain(code) {
  const { max_body_mb: mb, max_pixels: pixels, formats = [] } = limits ?? {};
  const text = MESSAGES[code] ?? MESSAGES.unknown;
  return text.replace("{mb}", mb).replace("{pixels}", pixels / 1e6).replace("{formats}", formats.join(", "));
}

/** Show why files failed, as pairs of a file (or null) and its Problem. */
function showErrors(problems) {
  const lines = problems.map(([file, problem]) => {
    const line = make("p");
    const said = problem.message && `The service says: ${problem.message}`;
    line.append(make("strong", file ? `${file.name}: ` : ""), explain(problem.code), make("small", said));
    return line;
  });
  element("errors").replaceChildren(...lines);
  element("again").textContent = failed.length > 1 ? `Try again with ${failed.length} photos` : "Try again";
  element("retry").hidden = !problems.some(([, { code }]) => WORKS_LATER.includes(code));
}

const title = ({ answer }) => answer.class ?? "Not sure";

function certainty({ answer }) {
  return (answer.class === null ? `perhaps ${answer.top_k[0].class}, ` : "") + percent(answer.confidence);
}

/** Add a result to the gallery, newest first. */
function addShot(shot, isShown) {
  const button = Object.assign(make("button"), { type: "button", title: shot.name });
  const image = Object.assign(make("img"), { src: shot.preview, alt: "" });
  button.append(image, make("strong", title(shot)), make("span", certainty(shot)));
  button.onclick = () => {
    showResult(shot, button);
    element("answer").focus();
  };
  element("shots").prepend(make("li"));
  element("shots").firstChild.append(button);
  if (element("shots").children.length > MAX_SHOTS) element("shots").lastChild.remove();
  element("gallery").hidden = false;
  if (isShown) {
    showResult(shot, button);
    element("status").textContent = `${title(shot)}: ${certainty(shot)}`;
    element("result").scrollIntoView({ block: "nearest" });
  }
}

function showResult(shot, button) {
  const { answer, name, preview } = shot;
  const guess = `The most probable class is ${answer.top_k[0].class} with ${percent(answer.confidence)}`;
  const wanted = Math.round(1000 * (limits?.threshold ?? 0)) / 10;
  const unsure = `${guess}; this service names a class from ${wanted}% on.`;
  element("answer").textContent = title(shot);
  element("sure").textContent = answer.class === null ? unsure : `${percent(answer.confidence)} sure`;
  element("unlike").hidden = !answer.unlike_training;
  element("photo").src = preview;
  element("name").textContent = name;
  element("crop").src = answer.crop;
  element("crop").onload = ({ target }) => target.classList.toggle("small", target.naturalWidth <= SMALL_PX);
  element("classes").replaceChildren(...answer.top_k.map(row));
  const time = answer.time_ms < 1000 ? `${answer.time_ms.toFixed(0)} ms` : `${(answer.time_ms / 1000).toFixed(1)} s`;
  element("details").textContent = `Model ${answer.model.name}, version ${answer.model.version}; answered in ${time}.`;
  markShown(button);
}

/** Mark the photo of the gallery whose result is shown; null hides the result. */
function markShown(button) {
  for (const other of element("shots").querySelectorAll("button")) other.setAttribute("aria-current", other === button);
  element("result").hidden = button === null;
}

/** Return the entry of a class in the list: its name, and its probability as a bar and as text. */
function row({ class: name, probability }) {
  const [line, value, track, bar] = [make("li"), make("span", "", "value"), make("span", "", "track"), make("span")];
  bar.style.width = `${100 * probability}%`;
  track.append(bar);
  value.append(track, make("span", percent(probability)));
  line.append(make("span", name), " ", value);
  return line;
}

/** Classify what was dropped or pasted, or say that it is no file. */
function take(event, data) {
  if (element("asking").open) return;
  event.preventDefault();
  if (data.files.length > 0) classifyAll(data.files);
  else showErrors([[null, new Problem("no_file")]]);
}

for (const id of ["files", "camera"]) {
  element(id).onchange = ({ target }) => {
    classifyAll(target.files);
    target.value = ""; // the same file may be chosen again
  };
}
document.ondragover = (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
};
document.ondragleave = ({ relatedTarget }) => relatedTarget ?? element("drop").classList.remove("over");
document.ondrop = (event) => {
  element("drop").classList.remove("over");
  take(event, event.dataTransfer);
};
document.onpaste = (event) => take(event, event.clipboardData);
element("model").onchange = showClasses;
element("stop").onclick = () => {
  failed.push(...queue.splice(0));
  element("files").focus(); // this button disappears
  sending.abort();
};
element("again").onclick = () => {
  element("files").focus();
  if (failed.length > 0) classifyAll(failed.splice(0));
  else startAndReport();
};
element("cancel").onclick = () => element("asking").close("");
element("unlock").onsubmit = (event) => {
  event.preventDefault();
  element("asking").close(element("key").value.trim());
};
startAndReport();
